"""The weight swap of one SGLang server: what is asked of whom, in the order that works.

Pause (what runs goes back to the queue) -> begin -> the workers pull, are proved and commit -> end -> resume. A swap
that breaks off anywhere leaves the server paused and its weights poisoned; success is what its workers' hashes say,
never an HTTP answer.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from megatron_rl.errors import InputError, SwapError
from megatron_rl.resharding.families.architecture import differences
from megatron_rl.resharding.layout import Layout
from megatron_rl.resharding.swap import SwapSource
from megatron_rl.resharding.terms import Attached
from megatron_rl.resharding.transports.meeting import MARGIN, MeetingPlace
from megatron_rl.rollout.sglang.servers.http import Server, ServerError, UnprocessableError
from megatron_rl.rollout.sglang.servers.process import HOOK
from megatron_rl.system.control import Control, Worker, WorkerError, ask_all

_TIDY = 10.0  # seconds for a server to leave a swap that broke off
Bring = Callable[[Server, int], Awaitable[None]]  # how full tensors get into a server without the hook


@dataclass
class Swapped:
    """What a swap of one server took."""

    bytes: int
    seconds: dict[str, float] = field(default_factory=dict)  # by phase; "paused": from pause to resume


@dataclass(frozen=True)
class Network:
    """How trainer ranks send to one server's workers."""

    place: MeetingPlace
    backend: str
    sources: int  # trainer ranks that there are
    readers: tuple[int, ...]  # those that send
    senders: list[Worker]  # these


class ServerSwap:
    """Swaps one server's weights; ``workers`` is the number of its processes that hold a part of the model.

    A step may take ``seconds``, and ``prompt`` seconds where the server has only to answer.
    ``reads`` says whether they read the memory that the trainer's ranks offer; with a ``network`` they are sent to.
    """

    def __init__(
        self, name: str, server: Server, control: Control, workers: int, seconds: float, prompt: float, reads: bool
    ) -> None:
        self.name, self.server, self.control, self.workers, self.seconds = name, server, control, workers, seconds
        self.prompt, self.reads = min(prompt, seconds), reads
        self.network: Network | None = None
        self._own: list[np.ndarray] = []  # of the plan's copies, those to each worker
        self._owners: list[Worker] = []  # the trainer's ranks that have something to send

    async def attach(self, source: SwapSource, dtype: torch.dtype) -> Attached:
        """Learn the workers' layout and plan the way from the trainer's ranks; the server is paused and poisoned.

        Raises InputError for another model or a layout that is not understood, SwapError for plans that differ.
        """
        await self.server.pause(self.prompt)
        async with self._update(None) as workers:
            for config in await self._all(workers, "config"):
                if wrong := differences(source.hf_config, config):
                    raise InputError(f"{self.name} holds another model than the one that is trained: {wrong}.")
            tensors = await asyncio.to_thread(source.tensors)  # thousands of them: the loop looks after other servers
            learnt = await self._all(workers, "learn", tensors, dtype)
            unread = frozenset.intersection(*(missing for _, missing, _ in learnt))
            layout = await asyncio.to_thread(Layout, tensors, tuple(shard for shard, _, _ in learnt), unread)
            dtypes = {local: kind for _, _, mine in learnt for local, kind in mine.items()}
            offered = source if self.reads else source.without_memory()
            attached = await self._all(workers, "attach", offered, layout)
            hashes, self._own = {plan for plan, _ in attached}, [own for _, own in attached]
            if self.network is not None:
                plans = await self._all(self.network.senders, "plan", layout, dtypes, self.network.readers)
                hashes |= {plan for plan, _ in plans}
                self._owners = [s for s, (_, sends) in zip(self.network.senders, plans, strict=True) if sends]
            if len(hashes) > 1:
                raise SwapError(f"Different plans were made for {self.name}: {', '.join(sorted(hashes))}.")
            if self.network is not None:
                await self._meet(self.network, workers)
        return Attached(layout, hashes.pop(), dtypes)

    async def _meet(self, network: Network, workers: list[Worker]) -> None:
        """Have the workers and the ranks that send join a group."""
        seconds = max(self.seconds - MARGIN, 1.0)
        meeting = network.place.meeting(network.backend, network.sources, network.readers, self.workers, seconds)
        await self._both(self._all(workers, "connect", meeting), self._all(network.senders, "connect", meeting))

    async def _pull(self, workers: list[Worker], version: int) -> list[Any]:
        """Have the workers pull, and the trainer's ranks send where they must; what the workers say."""
        pulls = self._all(workers, "pull", version)
        if self.network is None:
            return await pulls
        return (await self._both(pulls, self._all(self._owners, "push", version)))[: len(workers)]

    async def _both(self, ours: Awaitable[list[Any]], theirs: Awaitable[list[Any]]) -> list[Any]:
        """Two sides of one thing, when both have ended. A process that is gone is the reason for what others say."""
        answers = await asyncio.gather(ours, theirs, return_exceptions=True)
        errors = [answer for answer in answers if isinstance(answer, BaseException)]
        for error in sorted(errors, key=lambda error: not isinstance(error, WorkerError)):
            raise error
        return [each for answer in answers for each in answer]  # type: ignore[union-attr]

    async def __call__(
        self, version: int, hashes: Awaitable[np.ndarray], bring: Bring | None = None, resume: bool = True
    ) -> Swapped:
        """Bring the trainer's weights, prove them against the owners' ``hashes`` and make them usable.

        ``bring`` has SGLang load full tensors before the workers' memory is proved; None: the workers pull.
        """
        marks = [("", time.perf_counter())]
        await self.server.pause(self.prompt)
        marks.append(("pause", time.perf_counter()))
        if bring is None:
            async with self._update(version) as workers:
                marks.append(("begin", time.perf_counter()))
                moved = await self._pull(workers, version)
                marks.append(("pull", time.perf_counter()))
                await self._prove(workers, version, await hashes)
                marks.append(("prove", time.perf_counter()))
        else:
            async with self._session():
                async with self._call(None) as workers:
                    await self._all(workers, "poison")
                marks.append(("begin", time.perf_counter()))
                await bring(self.server, version)
                marks.append(("bring", time.perf_counter()))
                async with self._call(version) as workers:
                    moved = await self._all(workers, "digest", version)
                    await self._prove(workers, version, await hashes)
                marks.append(("prove", time.perf_counter()))
        marks.append(("end", time.perf_counter()))
        if resume:
            await self.server.resume(self.prompt)
            marks.append(("resume", time.perf_counter()))
        seconds = {name: at - before for (_, before), (name, at) in pairwise(marks)}
        seconds |= {"copy": max(took for took, _ in moved), "paused": marks[-1][1] - marks[0][1]}
        return Swapped(sum(size for _, size in moved), seconds)

    async def _prove(self, workers: list[Worker], version: int, hashes: np.ndarray) -> None:
        """All workers, before any of them becomes usable."""
        await self._all(workers, "verify", version, each=[(hashes[own],) for own in self._own])
        await self._all(workers, "commit", version)

    @asynccontextmanager
    async def _update(self, version: int | None) -> AsyncIterator[list[Worker]]:
        async with self._session(), self._call(version) as workers:
            yield workers

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[None]:
        try:
            await self.server.begin(self.prompt)
        except UnprocessableError:  # one that broke off may have left a session open
            await self.server.end(self.seconds)
            await self.server.begin(self.prompt)
        try:
            yield
        except BaseException:
            with suppress(ServerError):
                await self.server.end(_TIDY)
            raise
        await self.server.end(self.seconds)

    @asynccontextmanager
    async def _call(self, version: int | None) -> AsyncIterator[list[Worker]]:
        """Send the workers into the hook; they wait for orders inside of the block and are let go after it."""
        session = self.control.session()
        call = json.dumps({"control": self.control.address, "session": session, "seconds": self.seconds})
        update = asyncio.ensure_future(
            self.server.update_from_tensor(
                [(call, torch.zeros(1, dtype=torch.uint8))], self.workers, HOOK, version, self.seconds
            )
        )
        update.add_done_callback(lambda _: self.control.cancel(session))
        workers: list[Worker] = []
        try:
            workers = await self.control.collected(session, self.name, range(self.workers), self.seconds)
            yield workers
        except BaseException as error:
            _release(workers)
            await asyncio.wait({update}, timeout=_TIDY)
            if not update.done():
                update.cancel()
            refused = update.exception() if update.done() and not update.cancelled() else None
            if refused is not None and isinstance(error, Exception) and not workers:
                raise refused from error
            raise
        _release(workers)
        await update

    async def _all(
        self, workers: Sequence[Worker], method: str, *arguments: Any, each: Sequence[Sequence[Any]] = ()
    ) -> list[Any]:
        return await ask_all(workers, method, *arguments, seconds=self.seconds, each=each)


def _release(workers: list[Worker]) -> None:
    for worker in workers:
        worker.release()
