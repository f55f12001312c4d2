"""One SGLang server's life: started or adopted, attached to the trainer, swapped, restarted when it fails."""

import asyncio
import time
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any

import aiohttp
import numpy as np
import torch

from megatron_rl.errors import InputError
from megatron_rl.resharding.swap import SwapSource
from megatron_rl.resharding.terms import Attached
from megatron_rl.rollout.config import SGLangConfig
from megatron_rl.rollout.sglang.servers.http import Server, ServerError
from megatron_rl.rollout.sglang.servers.keeper import FarServer
from megatron_rl.rollout.sglang.servers.process import HOOK, ServerProcess
from megatron_rl.rollout.sglang.servers.spread import SpreadServer
from megatron_rl.rollout.sglang.swap import Bring, ServerSwap, Swapped
from megatron_rl.system.control import Control, WorkerError

AnyServer = ServerProcess | FarServer | SpreadServer
MEMORY = ("kv_cache", "weights")  # that a server can give back
_POLL = 0.3  # seconds


class LostError(ServerError):
    """A server failed and may not be started again."""


class Replica:
    """A server with a copy of the model, whose workers may be on several machines.

    ``process`` is None for one that somebody else started.
    """

    def __init__(self, name: str, url: str, process: AnyServer | None, options: SGLangConfig, control: Control) -> None:
        self.name, self.url, self.process, self.options = name, url, process, options
        self.workers, self.control = options.tensor_parallel, control
        self.server: Server
        self.attached: Attached | None = None
        self.version = -1  # of its weights; negative: poisoned
        self.poisoned = "no complete swap yet"
        self.restarted = 0
        self.failed: Exception | None = None  # why it is not swapped, since it was last started or swapped
        self.repairs = 0  # tried since its last complete swap
        self.paused = 0  # so often, to be attached, swapped or released
        self.released: set[str] = set()  # what memory it has given back
        self.lost = ""  # why it will not come back
        self.lock = asyncio.Lock()  # held while it is swapped or restarted

    def open(self, http: aiohttp.ClientSession, key: str, reads: bool) -> None:
        """Give it its HTTP side. ``reads``: whether its workers read the trainer's memory themselves."""
        self.server = Server(http, self.url, key)
        seconds = self.options.swap_seconds, self.options.health_seconds
        self.swap = ServerSwap(self.name, self.server, self.control, self.workers, *seconds, reads)

    @property
    def armed(self) -> bool:
        return self.version >= 0

    @property
    def serving(self) -> bool:
        """Whether it can be asked for completions."""
        return self.armed and not self.gone

    @property
    def gone(self) -> bool:
        return self.process is not None and self.process.ended

    @property
    def places(self) -> tuple[str, ...]:
        """``machine.place()`` of the machines that it runs on; empty where that is not known."""
        return self.process.places if self.process is not None else ()

    @property
    def off(self) -> bool:
        """Whether its machine is lost: the other servers go on without it."""
        return self.process is not None and bool(self.process.lost)

    @property
    def exhausted(self) -> bool:
        """Whether it may not be started again."""
        return self.process is None or bool(self.process.lost) or self.restarted >= self.options.restarts

    def health(self) -> dict[str, Any]:
        """Its address, process id, weight version (-1: poisoned), why, and restarts."""
        return {
            "url": self.url,
            "pid": self.process.pid if self.process else 0,
            "weight_version": self.version,
            "poisoned": "" if self.armed else self.poisoned,
            "restarts": self.restarted,
        }

    def poison(self, reason: str) -> None:
        """Note that its weights are not usable, and why."""
        self.version, self.poisoned = -1, reason

    async def ready(self) -> None:
        """Wait until it answers, and learn what it can do. Raises InputError with its last words when it ends."""
        deadline = time.monotonic() + self.options.start_seconds
        while not await self.server.ready():
            if self.gone:
                raise InputError(f"The SGLang server {self.name} ended before it was ready. It said:{self._words()}")
            if time.monotonic() > deadline:
                raise InputError(
                    f"The SGLang server {self.name} at {self.url} was not ready in {self.options.start_seconds:.0f} s "
                    f"(rollout.sglang.start_seconds): {self.server.unready}. It said:{self._words()}"
                )
            await asyncio.sleep(_POLL)
        if self.process is not None:
            self.process.note_parts()
        nodes = self.options.nodes if self.process is not None else 1
        found = await self.server.ask_abilities(self.options.health_seconds, nodes)
        if HOOK not in found.hooks:
            raise InputError(
                f"The SGLang server at {self.url} does not let a trainer into its workers: start it by "
                f"`megatron-rl engine`, or with --custom-weight-loader {HOOK}."
            )
        if found.workers != self.workers:
            raise InputError(
                f"The SGLang server at {self.url} has {found.workers} workers: set rollout.sglang.tensor_parallel="
                f"{found.workers}; it is {self.workers}."
            )
        # A prefix cache keeps one of several computations of the same prompt, and answers name its experts: another
        # request's first token may have come through others.
        if self.options.routing_replay and (found.prefixes or not found.experts):
            raise InputError(
                f"rollout.sglang.routing_replay=true, but the SGLang server at {self.url} cannot say which experts "
                "each token went through: start it with --enable-return-routed-experts and --disable-radix-cache."
            )

    async def ailment(self) -> str:
        """What is wrong with its process, in words; empty: it answers. Found after ``health_seconds`` at most.

        SGLang gives up a look of its own after 20 s (SGLANG_HEALTH_CHECK_TIMEOUT): it is asked again.
        """
        paused, deadline = self.paused, time.monotonic() + self.options.health_seconds
        while (left := deadline - time.monotonic()) > 0:
            if await self.server.healthy(left) or self.paused != paused:
                return ""
            if self.gone:
                return "it ended"
            await asyncio.sleep(_POLL)
        return f"it did not answer in {self.options.health_seconds:.0f} s"

    async def attach(self, source: SwapSource, dtype: torch.dtype) -> Attached:
        """Have its workers plan their way to the trainer's weights; it serves nothing until it is swapped."""
        self.paused += 1
        self.poison("no complete swap since the engine was attached")
        self.attached = await self.swap.attach(source, dtype)
        return self.attached

    async def release(self) -> None:
        """Have it give back the memory of its weights and its cache until the next swap; once.

        One that cannot is ended, and so has given it back; it is started again at the next swap.
        """
        async with self.lock:
            if self.released == set(MEMORY):
                return
            self.paused += 1
            self.poison("its memory was given back")
            try:  # the last batch may be under way, and it must be idle
                await self.server.pause(self.options.swap_seconds)
                await self.server.release(MEMORY, self.options.swap_seconds)
            except ServerError as error:
                if self.process is None:
                    raise
                print(f"{self.name} is ended, as it did not give back its memory: {error}", flush=True)
                with suppress(WorkerError):  # it is on another machine, which has gone
                    await asyncio.to_thread(self.process.kill)
                self.failed = error
            else:
                self.released = set(MEMORY)

    async def _reclaim(self, what: str) -> None:
        """Take memory back, once: a swap that failed after it is tried again."""
        if what in self.released:
            await self.server.reclaim(what, self.options.swap_seconds)
            self.released.remove(what)

    async def bring(self, version: int, hashes: Awaitable[np.ndarray], way: Bring | None) -> Swapped:
        """Swap its weights once. Raises ServerError when that takes longer than ``swap_seconds``."""
        self.paused += 1
        self.poison(f"swap {version} is not finished")
        try:
            async with asyncio.timeout(self.options.swap_seconds):
                swapped = await self._bring(version, hashes, way)
        except BaseException as error:
            if isinstance(error, TimeoutError):
                error = ServerError(f"{self.name} was not swapped in {self.options.swap_seconds:.0f} s")
            self.poison(f"swap {version} failed: {error}")
            if self.swap.network is not None:  # links that a swap broke off are of no use any more
                self.attached = None
            raise error
        self.version, self.failed, self.repairs = version, None, 0
        return swapped

    async def _bring(self, version: int, hashes: Awaitable[np.ndarray], way: Bring | None) -> Swapped:
        await self._reclaim("weights")
        swapped = await self.swap(version, hashes, way, resume=not self.released)
        if self.released:  # the cache is taken back when the weights' way in needs no memory any more
            await self._reclaim("kv_cache")
            await self.server.resume(self.options.swap_seconds)
        return swapped

    async def restart(self, why: str) -> None:
        """End it, start it again and wait until it is ready; unattached then.

        Raises LostError when it is not ours or was restarted too often, ServerError when it does not become ready.
        """
        self.poison(why)
        self.attached = None
        self.released.clear()
        if self.process is None:
            raise LostError(f"the SGLang server at {self.url} failed and was not started here: {why}")
        if self.process.lost:
            await asyncio.to_thread(self.process.kill)  # what it still has elsewhere
            raise LostError(f"{self.name}: {self.process.lost}")
        if self.exhausted:
            raise LostError(
                f"{self.name} failed again after {self.restarted} restarts (rollout.sglang.restarts): {why}. "
                f"It said:{self._words()}"
            )
        self.restarted += 1
        print(f"{self.name} is restarted: {why}", flush=True)
        try:
            await asyncio.to_thread(self.process.kill)
            self.process.start()
            await self.ready()
        except InputError as error:
            raise ServerError(str(error)) from error
        except WorkerError as error:
            await asyncio.to_thread(self.process.kill)  # what has been started on machines that are still there
            raise LostError(f"{self.name}: {error}") from error
        self.failed = None

    async def prepare(self, source: SwapSource, dtype: torch.dtype) -> None:
        """What comes before a swap. Where the last one failed it is tried again, then attached anew, then restarted."""
        if self.gone or self.failed is not None:
            self.repairs += 1
            alive = not self.gone and isinstance(self.failed, WorkerError) and self.repairs <= 2
            if not (alive and await self.server.ready(self.options.health_seconds)):
                await self.restart(f"a swap failed: {self.failed}" if self.failed is not None else "it ended")
            else:
                print(f"{self.name} is swapped again: {self.failed}", flush=True)
                if self.repairs == 2:
                    self.attached = None
        if self.attached is None:
            await self.attach(source, dtype)

    def _words(self) -> str:
        return self.process.last_words() if self.process else " nothing here: it was started elsewhere."
