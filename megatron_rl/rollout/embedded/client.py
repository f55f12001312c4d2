"""The trainer's side of the embedded engine. Imports no torch."""

import secrets
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
from megatron_rl.system.channel import KEY, PROGRESS, dial, parse_address

START_SECONDS = 180.0  # an engine may still have to start
_RETRY_SECONDS = 0.05
_KEPT_ERRORS = {error.__name__: error for error in (SwapError, InputError, FloatingPointError)}
_T = TypeVar("_T")
_U = TypeVar("_U")


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
        self.far = isinstance(parse_address(address), tuple)  # not at a Unix socket: it may be on another machine
        self._lock = threading.Lock()
        self._connection = self._connect(key, time.monotonic() + seconds)
        self._progress = 0, 0
        self._batches = Batches()

    def place(self) -> str:
        """``machine.place()`` of its process."""
        return self._call("place")

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
    """Several engines as one ``protocol.Engine``: requests are dealt out, swaps go to all.

    Weights go to engines on the ranks' machine through its memory. Where some are elsewhere they go through files in
    ``folder``, which all see. An engine elsewhere that is lost is missed no more as long as another one is left: what
    it was asked is asked of the others.
    """

    def __init__(self, engines: Sequence[EmbeddedEngine], folder: Path | None = None) -> None:
        self.engines, self.folder = list(engines), folder
        self._threads, self._losing = ThreadPoolExecutor(len(engines)), threading.Lock()
        self._batches = Batches()

    def reach(self, places: Sequence[str]) -> Reach:
        """See ``protocol.Engine``."""
        if len({*places, *self._all(lambda engine: engine.place())}) == 1:
            return Reach()
        if self.folder is None:
            raise InputError("The trainer's ranks and the engines run on several machines, with no folder in common.")
        return Reach("files", folder=str(self.folder.absolute()), attempt=secrets.token_hex(8))

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
        """The completions come back in the order of the requests."""
        return self._dealt(requests, lambda engine, share: engine.generate(share, sampling))

    def score(self, given: Sequence[Given]) -> list[Scored]:
        """As ``EmbeddedEngine.score``; dealt out as ``generate`` does."""
        return self._dealt(given, lambda engine, share: engine.score(share))

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

    def _dealt(self, work: Sequence[_U], ask: Callable[[EmbeddedEngine, Sequence[_U]], Sequence[_T]]) -> list[_T]:
        """The answers in the order of the work, of n engines engine i takes pieces i, i + n, …; again what is lost."""
        results: dict[int, _T] = {}
        while left := [i for i in range(len(work)) if i not in results]:
            engines = tuple(self.engines)  # another thread may find one lost
            dealt = {engine: left[n :: len(engines)] for n, engine in enumerate(engines)}

            def answers(engine: EmbeddedEngine, dealt: dict[EmbeddedEngine, list[int]] = dealt) -> dict[int, _T]:
                return dict(zip(dealt[engine], ask(engine, [work[i] for i in dealt[engine]]), strict=True))

            for found in self._all(answers, engines):
                results |= found
        return [results[i] for i in range(len(work))]

    def _all(self, call: Callable[[EmbeddedEngine], _T], engines: Sequence[EmbeddedEngine] = ()) -> list[_T]:
        """Call every engine at the same time and wait for all, also when one fails; what those say that are left."""
        futures = {engine: self._threads.submit(call, engine) for engine in engines or tuple(self.engines)}
        wait(futures.values())
        lost = {e: error for e, future in futures.items() if isinstance(error := future.exception(), ConnectionError)}
        if len(lost) == len(futures) or any(not engine.far for engine in lost):
            raise next(iter(lost.values()))
        for engine, error in lost.items():
            with self._losing:
                if engine in self.engines:
                    print(f"warning: {error}; its requests go to the other engines", flush=True)
                    self.engines.remove(engine)
        return [future.result() for engine, future in futures.items() if engine not in lost]
