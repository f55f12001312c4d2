"""Engines that serve the weights of a Hugging Face folder: no trainer is needed. Imports no torch."""

import asyncio
import os
import secrets
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from megatron_rl.errors import InputError, RunError
from megatron_rl.rollout.config import RolloutConfig
from megatron_rl.rollout.embedded.client import EmbeddedEngine, EnginePool, engine_command, engine_environment
from megatron_rl.rollout.protocol import Completer, Completion, Request, Sampling
from megatron_rl.rollout.sglang.generation import generate
from megatron_rl.rollout.sglang.servers.http import Server, ServerError
from megatron_rl.rollout.sglang.servers.process import ServerProcess, environment, on_this_machine
from megatron_rl.rollout.sglang.servers.versions import supported
from megatron_rl.system import machine, scratch
from megatron_rl.system.channel import api_key
from megatron_rl.system.processes import UTF8, last_error, tied_to_this_process
from megatron_rl.system.supervision.logs import last_lines, told

_POLL = 0.1  # seconds
_LAST_LINES = 20  # of a log, in an error
_WATCH = 2.0  # seconds between looks at a server that generates


@dataclass(frozen=True)
class Served:
    """What is started."""

    folder: Path  # a Hugging Face model
    engine: str = "embedded"  # or sglang
    engines: int = 1  # processes of the embedded engine
    dtype: str = "float32"  # of the embedded engine's weights; SGLang takes the folder's
    threads: int = 1  # CPU threads of each engine
    running: int = 256  # sequences decoded at the same time
    longest: int = 4096  # tokens of a prompt with its completion
    tensor_parallel: int = 1  # SGLang: GPUs that share every matrix
    start_seconds: float = 900.0
    args: Mapping[str, Any] = field(default_factory=dict)  # more options of sglang.launch_server


@contextmanager
def serving(served: Served) -> Iterator[Completer]:
    """The engine, while what is inside goes on. Raises InputError or RunError with its last words where none starts."""
    with scratch.made() as folder, (_sglang if served.engine == "sglang" else _embedded)(served, folder) as engine:
        yield engine


@contextmanager
def _embedded(served: Served, folder: Path) -> Iterator[Completer]:
    key = secrets.token_bytes(16)
    config = RolloutConfig(threads=served.threads, max_running=served.running)
    places = scratch.temporary(folder) | scratch.caches(folder)
    env = os.environ | UTF8 | places | engine_environment(config, key) | {"TORCHDYNAMO_DISABLE": "1"}
    processes = []
    for index in range(served.engines):
        address, log = folder / f"engine{index}", folder / f"engine{index}.log"
        command = [*engine_command(config, served.folder, str(address), served.dtype), "--load"]
        with log.open("wb") as out:
            popen = subprocess.Popen(
                tied_to_this_process(command), env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )
        processes.append((popen, address, log))
    try:
        engines = [_client(*process, key, served.start_seconds) for process in processes]
        pool = EnginePool(engines)
        yield pool
        pool.stop()
    finally:
        for popen, _, _ in processes:
            popen.kill()
            popen.wait()


def _client(popen: "subprocess.Popen[bytes]", address: Path, log: Path, key: bytes, seconds: float) -> EmbeddedEngine:
    """The engine's process, once it has the weights."""
    deadline = time.monotonic() + seconds
    while not address.exists() and popen.poll() is None and time.monotonic() < deadline:
        time.sleep(_POLL)
    try:
        if popen.poll() is not None:
            raise ConnectionError("it ended")
        return EmbeddedEngine(str(address), key, max(0.0, deadline - time.monotonic()))
    except ConnectionError as error:
        lines = last_lines(log)
        if (said := last_error(lines)) is not None:
            raise InputError(said) from None
        words = told(lines, _LAST_LINES) or " nothing."
        raise RunError(f"The embedded engine did not start ({error}). It said:{words}") from None


@contextmanager
def _sglang(served: Served, folder: Path) -> Iterator[Completer]:
    version = machine.installed("sglang")
    if version is None:
        raise InputError('SGLang is not installed: pip install "megatron-rl[sglang]", or `make sglang` without a GPU.')
    supported(version)
    key, port = api_key(secrets.token_bytes(16)), machine.free_low_port()
    chosen = {
        "skip_tokenizer_init": True,  # token ids go in and out
        "skip_server_warmup": True,
        "log_level": "info",
        "log_level_http": "warning",
        "max_running_requests": served.running,
    }
    chosen |= on_this_machine((served.longest + 8) * served.running) | dict(served.args)
    chosen |= {
        "model_path": str(served.folder),
        "host": "127.0.0.1",
        "port": port,
        "tp_size": served.tensor_parallel,
        "api_key": key,
    }
    options = {name.replace("_", "-"): value for name, value in chosen.items()}
    env = environment(served.threads, served.tensor_parallel, None) | scratch.temporary(folder)
    process = ServerProcess("evaluate", options, env, folder, folder / "server.log")
    process.start()
    engine = ServedFolder(process, f"http://127.0.0.1:{port}", key, 2 * served.running)
    try:
        engine.wait(port, served.start_seconds)
        yield engine
    finally:
        engine.stop()


class ServedFolder:
    """One SGLang server as a ``Completer``: an event loop in a thread."""

    def __init__(self, process: ServerProcess, url: str, key: str, slots: int) -> None:
        self.process = process
        self._asked = self._answered = self._generating = 0
        self._slots = asyncio.Semaphore(slots)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="sglang", daemon=True).start()
        self.server = asyncio.run_coroutine_threadsafe(self._open(url, key), self._loop).result()

    def wait(self, port: int, seconds: float) -> None:
        """Until it answers. Raises RunError with its last words when it ends, or is late."""
        deadline = time.monotonic() + seconds
        # whoever else has taken the port meanwhile must neither be taken for the server nor get its key
        while not (self.process.listens(port) and self._do(self.server.ready())):
            if self.process.ended or time.monotonic() > deadline:
                how = "ended before it was ready" if self.process.ended else f"was not ready in {seconds:.0f} s"
                raise RunError(f"SGLang {how}. It said:{self.process.last_words()}")
            time.sleep(_POLL)
        self.process.note_parts()

    async def complete(self, request: Request, sampling: Sampling) -> list[Completion]:
        """See ``protocol.Completer``. Raises RunError when the server is lost."""
        asked = asyncio.run_coroutine_threadsafe(self._complete(request, sampling), self._loop)
        return await asyncio.wrap_future(asked)

    def progress(self) -> tuple[int, int]:
        """See ``protocol.Completer``."""
        return self._answered, self._asked

    def stop(self) -> None:
        """See ``protocol.Completer``."""
        self.process.kill(gently=True)
        self._do(self.server.http.close())
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def _open(self, url: str, key: str) -> Server:
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        return Server(aiohttp.ClientSession(connector=connector), url, key)

    async def _complete(self, request: Request, sampling: Sampling) -> list[Completion]:
        self._generating += 1
        self._asked += len(request.seeds)
        try:
            done = await generate(
                self.server,
                [request],
                sampling,
                slots=self._slots,
                seconds=3600.0,
                available=self._available,
                abort=self._abort,
                done=self._count,
            )
        except ServerError as error:
            raise RunError(f"SGLang does not answer ({error}). It said:{self.process.last_words()}") from error
        finally:
            self._generating -= 1
            if not self._generating:
                self._asked = self._answered = 0
        return done[0]

    async def _available(self) -> None:
        if self.process.ended:
            raise ServerError("it ended")

    async def _abort(self, name: str) -> None:
        try:
            await self.server.abort(name)
        except ServerError:
            await asyncio.sleep(_WATCH)  # it is asked again, or found to have ended

    def _count(self) -> None:
        self._answered += 1

    def _do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()
