"""The router in front of several servers: ``sglang-router``, as a process of this one.

    MEGATRON_RL_KEY=HEX python -m megatron_rl.rollout.sglang.servers.router --port 30000 --metrics-port 30001

Health, retries and restarts are the trainer's: it adds a server when its weights are proved and takes it out when it
fails.
"""

import argparse
import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from megatron_rl.errors import InputError
from megatron_rl.rollout.sglang.servers.http import Server, ServerError
from megatron_rl.rollout.sglang.servers.process import open_log
from megatron_rl.system import machine
from megatron_rl.system.channel import KEY, api_key, key_from_environment
from megatron_rl.system.processes import run, tied_to_this_process

_WATCH = 0.5  # seconds between looks at the process
_ASK_SECONDS = 60.0  # for an answer
_LONGEST_REQUEST = 24 * 3600  # seconds; the trainer's own deadline is shorter


class Router:
    """The router's process and the servers behind it."""

    def __init__(self, port: int, key: bytes, log: Path, seconds: float) -> None:
        """``seconds`` are given to it to start, and to take a server.

        It takes no requests for a server before it lists it (``serves``).
        """
        self.url, self.log, self._key, self._seconds = f"http://127.0.0.1:{port}", log, key, seconds
        self._options = [f"--port={port}", f"--metrics-port={machine.free_low_port()}"]
        self.server: Server | None = None
        self.ready = False  # to take requests
        self.lost = ""  # why it will not come back
        self._asked: set[str] = set()  # addresses of the servers that it was told to take
        self._listed: set[str] = set()  # of those that it sends requests to
        self.start()

    def start(self) -> None:
        """Start the process, with no servers behind it. It dies with the thread that calls this."""
        self._listed.clear()
        self._asked.clear()
        with open_log(self.log) as file:
            self._process = subprocess.Popen(
                tied_to_this_process(
                    [sys.executable, "-m", "megatron_rl.rollout.sglang.servers.router", *self._options]
                ),
                env=_environment(self._key),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )

    @property
    def ended(self) -> bool:
        """Whether the process is gone."""
        return self._process.poll() is not None

    async def connect(self, server: Server) -> None:
        """Wait until it answers; ``server`` is its HTTP side. Raises InputError when it does not start."""
        deadline = time.monotonic() + self._seconds
        while True:
            try:
                await server.call("GET", "/workers", seconds=5)
                break
            except ServerError as error:
                if self.ended or time.monotonic() > deadline:
                    raise InputError(f"The router did not start ({error}); {self.log} says why.") from error
                await asyncio.sleep(0.2)
        self.server, self.ready = server, True

    def serves(self, url: str) -> bool:
        """Whether it sends requests to the server at ``url``."""
        return self.ready and url in self._listed

    async def add(self, url: str, serving: Callable[[], bool]) -> None:
        """Send requests to the server at ``url`` from now on, as long as it is ``serving``.

        A router that does not take it is started again, and then gets all servers.
        """
        if not self.ready:
            return
        try:
            await self._add(url, serving)
        except ServerError as error:
            print(f"warning: the router does not answer: {error}", flush=True)
            self.ready = False

    async def _add(self, url: str, serving: Callable[[], bool]) -> None:
        assert self.server is not None
        deadline = time.monotonic() + self._seconds
        while url not in self._listed and serving():
            if await self._names(url):
                self._listed.add(url)
                break
            if url not in self._asked:  # by another task neither: it refuses one that it is about to take
                self._asked.add(url)
                body = {"url": url, "api_key": api_key(self._key)}
                await self.server.call("POST", "/workers", body, seconds=_ASK_SECONDS)
            if time.monotonic() > deadline:
                raise ServerError(f"the router does not take {url}")
            await asyncio.sleep(0.05)

    async def remove(self, url: str) -> None:
        """Send the server at ``url`` no more, as far as the router answers, and wait until it knows of it no more."""
        self._listed.discard(url)
        self._asked.discard(url)
        if self.server is None:
            return
        deadline, told = time.monotonic() + _ASK_SECONDS, set[str]()
        with suppress(ServerError):
            while (names := await self._names(url)) and time.monotonic() < deadline:
                for name in names - told:
                    await self.server.call("DELETE", f"/workers/{name}", seconds=_ASK_SECONDS)
                told |= names
                await asyncio.sleep(0.05)

    async def _names(self, url: str) -> set[str]:
        """The router's own, of the server at ``url``."""
        assert self.server is not None
        listed = await self.server.call("GET", "/workers", seconds=_ASK_SECONDS)
        return {worker["id"] for worker in listed["workers"] if worker["url"] == url}

    async def watch(self, restarts: int, servers: Callable[[], Iterable[tuple[str, Callable[[], bool]]]]) -> None:
        """Start it again when it ends or does not answer, so often in a run, and add the ``servers`` that there are:
        the address of each, and whether it is still serving."""
        for _ in range(restarts):
            await self._while_it_answers()
            assert self.server is not None
            self.ready = False
            print("the router is started again: it ended or does not answer", flush=True)
            self.stop()
            self.start()
            with suppress(InputError):  # it is tried again
                await self.connect(self.server)
                await asyncio.gather(*(self.add(url, serving) for url, serving in servers()))
        await self._while_it_answers()
        self.ready = False
        self.lost = f"the router ended too often (rollout.sglang.restarts); {self.log} says why"

    async def _while_it_answers(self) -> None:
        while self.server is None or (self.ready and not self.ended):  # before it is connected nothing is known
            await asyncio.sleep(_WATCH)

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


def _environment(key: bytes) -> dict[str, str]:
    import os

    return {**os.environ, KEY: key.hex()}


def main() -> None:
    """Run the router until it is ended."""
    parser = argparse.ArgumentParser(prog="python -m megatron_rl.rollout.sglang.servers.router", description=__doc__)
    parser.add_argument("--port", type=int, required=True, help="on loopback")
    parser.add_argument("--metrics-port", type=int, required=True, help="of its Prometheus metrics, on loopback")
    options = parser.parse_args()
    key = api_key(key_from_environment())
    try:
        from sglang_router.router import Router as Rust
        from sglang_router.router_args import RouterArgs
    except ImportError as error:
        raise InputError(
            f'More than one engine needs sglang-router: pip install "megatron-rl[sglang]" ({error}).'
        ) from error
    arguments = RouterArgs(
        worker_urls=[],
        host="127.0.0.1",
        port=options.port,
        policy="cache_aware",
        api_key=key,
        disable_retries=True,
        disable_circuit_breaker=True,
        disable_health_check=True,
        request_timeout_secs=_LONGEST_REQUEST,
        prometheus_host="127.0.0.1",
        prometheus_port=options.metrics_port,
        log_level="warn",
    )
    Rust.from_args(arguments).start()


if __name__ == "__main__":
    run(main)
