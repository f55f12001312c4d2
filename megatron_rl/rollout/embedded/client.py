"""The trainer's side of the embedded engine. Imports no torch."""

import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from megatron_rl.errors import InputError, SwapError
from megatron_rl.resharding.terms import Attached, Reach, SwapReport
from megatron_rl.rollout.batches import Batches
from megatron_rl.rollout.config import RolloutConfig
from megatron_rl.rollout.protocol import Completion, Given, Request, Sampling, Scored
from megatron_rl.system.channel import KEY, PROGRESS, dial

START_SECONDS = 180.0  # an engine may still have to start
_RETRY_SECONDS = 0.05
_KEPT_ERRORS = {error.__name__: error for error in (SwapError, InputError, FloatingPointError)}
_T = TypeVar("_T")


class EngineError(RuntimeError):
    """An error inside an engine, with its type in the message; the engine's log has its traceback."""


def engine_command(config: RolloutConfig, model_folder: Path | str, address: str, dtype: str) -> list[str]:
    """The command line of one engine process; ``address`` is host:port or the path of a Unix socket."""
    options = {
        "model": model_folder,
        "address": address,
        "dtype": dtype,
        "threads": config.threads,
        "max-running": config.max_running,
    }
    command = [
        sys.executable,
        "-m",
        "megatron_rl.rollout.embedded.process",
        *(f"--{key}={options[key]}" for key in options),
    ]
    return [*command, "--true-on-policy"] if config.true_on_policy else command


def engine_environment(config: RolloutConfig, key: bytes) -> dict[str, str]:
    """What an engine process needs on top of the environment."""
    return {KEY: key.hex(), "OMP_NUM_THREADS": str(config.threads)}


class EmbeddedEngine:
    """A ``protocol.Engine`` in another process.

    Waits up to ``seconds`` for the process to listen. Every method raises what the engine raised
    (``EngineError`` for types that the trainer does not tell apart) and ConnectionError when the engine is gone.
    """

    def __init__(self, address: str, key: bytes, seconds: float = START_SECONDS) -> None:
        self.address = address
        self._lock = threading.Lock()
        self._connection = self._connect(key, time.monotonic() + seconds)
        self._progress = 0, 0
        self._batches = Batches()

    def reach(self, places: Sequence[str]) -> Reach:
        """See ``protocol.Engine``."""
        return self._call("reach", places)

    def attach(self, source: Any) -> Attached:
        """See ``protocol.Engine``."""
        return self._call("attach", source)

    def begin_swap(self, version: int) -> None:
        """See ``protocol.Engine``."""
        self._call("begin_swap", version)

    def finish_swap(self, version: int, hashes: np.ndarray) -> SwapReport:
        """See ``protocol.Engine``."""
        return self._call("finish_swap", version, hashes)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Completion]]:
        """See ``protocol.Engine``."""
        return self._call("generate", requests, sampling)

    def score(self, given: Sequence[Given]) -> list[Scored]:
        """Log-probabilities of given tokens, in the texts' order."""
        return self._call("score", given)

    async def complete(self, request: Request, sampling: Sampling) -> list[Completion]:
        """See ``protocol.Engine``."""
        return await self._batches.complete(self.generate, request, sampling)

    def progress(self) -> tuple[int, int]:
        """See ``protocol.Engine``: of the batch that is decoded, as the engine says about every second."""
        return self._progress

    def release(self) -> None:
        """Nothing: the embedded engine keeps its memory, and takes weights in swaps only."""

    def stalled(self) -> bool:
        """See ``protocol.Engine``: an embedded engine that ends ends the run."""
        return False

    def health(self) -> dict[str, Any]:
        """``pid``, ``weight_version`` (-1: poisoned) and ``resident_bytes``."""
        return self._call("health")

    def stop(self) -> None:
        """End the engine's process; nothing happens when the connection is closed already."""
        if not self._connection.closed:
            self._call("stop")
            self._connection.close()

    def _connect(self, key: bytes, deadline: float) -> Connection:
        while True:
            try:
                return dial(self.address, key)
            except (FileNotFoundError, ConnectionRefusedError):
                if time.monotonic() > deadline:
                    raise ConnectionError(f"no rollout engine listens at {self.address}; its log says why") from None
                time.sleep(_RETRY_SECONDS)
            except AuthenticationError as error:
                raise ConnectionError(f"the rollout engine at {self.address} has another key: {error}") from error
            except (EOFError, ConnectionResetError) as error:
                raise ConnectionError(f"the rollout engine at {self.address} ended; its log says why") from error

    def _call(self, method: str, *arguments: Any) -> Any:
        with self._lock:
            try:
                self._connection.send((method, arguments))
                kind, value = self._connection.recv()
                while kind == PROGRESS:
                    self._progress = value
                    kind, value = self._connection.recv()
            except (EOFError, OSError) as error:
                self._connection.close()
                raise ConnectionError(f"the rollout engine at {self.address} ended during {method}") from error
            except BaseException:  # interrupted: a late answer must not be taken for the next one
                self._connection.close()
                raise
            finally:
                self._progress = 0, 0
        if kind == "result":
            return value
        name, message = value
        if name in _KEPT_ERRORS:
            raise _KEPT_ERRORS[name](message)
        raise EngineError(f"{name} in the rollout engine at {self.address}: {message}")


class EnginePool:
    """Several engines as one: requests are dealt out, swaps go to all."""

    def __init__(self, engines: Sequence[EmbeddedEngine]) -> None:
        self.engines = engines
        self._threads = ThreadPoolExecutor(len(engines))
        self._batches = Batches()

    def reach(self, places: Sequence[str]) -> Reach:
        """See ``protocol.Engine``."""
        return self._all(lambda engine: engine.reach(places))[0]

    def attach(self, source: Any) -> Attached:
        """See ``protocol.Engine``. Raises ``SwapError`` when the engines made different plans."""
        attached = self._all(lambda engine: engine.attach(source))
        hashes = {each.plan_hash for each in attached}
        if len(hashes) > 1:
            raise SwapError(f"the engines made different plans: {', '.join(sorted(hashes))}")
        return attached[0]

    def begin_swap(self, version: int) -> None:
        """See ``protocol.Engine``."""
        self._all(lambda engine: engine.begin_swap(version))

    def finish_swap(self, version: int, hashes: np.ndarray) -> SwapReport:
        """Bytes of all engines together, seconds of the slowest."""
        reports = self._all(lambda engine: engine.finish_swap(version, hashes))
        return SwapReport(
            version,
            reports[0].plan_hash,
            sum(report.bytes for report in reports),
            max(report.seconds for report in reports),
        )

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Completion]]:
        """Engine i takes requests i, i + n, …; the completions come back in the order of the requests."""
        count = len(self.engines)
        results: list[list[Completion]] = [[] for _ in requests]
        shares = self._each(lambda i, engine: engine.generate(requests[i::count], sampling))
        for i, share in enumerate(shares):
            results[i::count] = share
        return results

    def score(self, given: Sequence[Given]) -> list[Scored]:
        """As ``EmbeddedEngine.score``; dealt out as ``generate`` does."""
        count = len(self.engines)
        results: list[Scored] = [Scored([], False)] * len(given)
        for i, share in enumerate(self._each(lambda i, engine: engine.score(given[i::count]))):
            results[i::count] = share
        return results

    async def complete(self, request: Request, sampling: Sampling) -> list[Completion]:
        """See ``protocol.Engine``; a batch is dealt out as ``generate`` does."""
        return await self._batches.complete(self.generate, request, sampling)

    def progress(self) -> tuple[int, int]:
        """See ``protocol.Engine``: of all engines together."""
        done, total = zip(*(engine.progress() for engine in self.engines), strict=True)
        return sum(done), sum(total)

    def release(self) -> None:
        """See ``protocol.Engine``."""
        self._all(lambda engine: engine.release())

    def stalled(self) -> bool:
        """See ``protocol.Engine``."""
        return any(engine.stalled() for engine in self.engines)

    def health(self) -> dict[str, Any]:
        """``engines``: the health of each."""
        return {"engines": self._all(lambda engine: engine.health())}

    def stop(self) -> None:
        """End all engines."""
        self._all(lambda engine: engine.stop())
        self._threads.shutdown()

    def _all(self, call: Callable[[EmbeddedEngine], _T]) -> list[_T]:
        return self._each(lambda _, engine: call(engine))

    def _each(self, call: Callable[[int, EmbeddedEngine], _T]) -> list[_T]:
        """Call every engine at the same time and wait for all, also when one fails."""
        futures = [self._threads.submit(call, i, engine) for i, engine in enumerate(self.engines)]
        wait(futures)
        return [future.result() for future in futures]
