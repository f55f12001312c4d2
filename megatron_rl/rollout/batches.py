"""Requests that are awaited one by one, completed in batches: for an engine whose ``generate`` wants many at once.

What is asked for in one tick of an event loop becomes one batch, in the order of the calls; so does what is asked for
while a batch is being made. Nothing waits for a batch to become larger.
"""

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

from megatron_rl.rollout.protocol import Completion, Request, Sampling

Generate = Callable[[Sequence[Request], Sampling], list[list[Completion]]]


class _Asked(NamedTuple):
    """One call, and what will be its result."""

    request: Request
    sampling: Sampling
    answer: "asyncio.Future[list[Completion]]"


class Batches:
    """``complete`` by means of a ``generate``, which is called in a thread; for any number of event loops.

    Loops do not share batches: what a batch holds does not depend on what other threads do at the time.
    """

    def __init__(self) -> None:
        self._queues: WeakKeyDictionary[asyncio.AbstractEventLoop, _Queue] = WeakKeyDictionary()
        self._lock = threading.Lock()

    async def complete(self, generate: Generate, request: Request, sampling: Sampling) -> list[Completion]:
        """One completion for each of the request's seeds; raises what ``generate`` raised for its batch."""
        loop = asyncio.get_running_loop()
        with self._lock:
            queue = self._queues.setdefault(loop, _Queue())
        return await queue.complete(generate, _Asked(request, sampling, loop.create_future()))


class _Queue:
    """The calls of one event loop; touched in its thread alone."""

    def __init__(self) -> None:
        self._asked: list[_Asked] = []
        self._working: asyncio.Task[None] | None = None

    async def complete(self, generate: Generate, asked: _Asked) -> list[Completion]:
        self._asked.append(asked)
        if self._working is None or self._working.done():  # a task begins behind all that are about to run now
            self._working = asyncio.ensure_future(self._work(generate))
        return await asked.answer

    async def _work(self, generate: Generate) -> None:
        try:
            while self._asked:
                sampling = self._asked[0].sampling
                batch = [asked for asked in self._asked if asked.sampling == sampling]
                self._asked = [asked for asked in self._asked if asked.sampling != sampling]
                await _answer(generate, [asked for asked in batch if not asked.answer.done()], sampling)
        finally:
            self._working = None
            for asked in self._asked:  # the loop is ending
                asked.answer.cancel()
            self._asked = []


async def _answer(generate: Generate, batch: list[_Asked], sampling: Sampling) -> None:
    """Complete one batch; an error is the answer to all of it."""
    if not batch:
        return
    try:
        groups = await asyncio.to_thread(generate, [asked.request for asked in batch], sampling)
    except Exception as error:
        for asked in batch:
            if not asked.answer.done():
                asked.answer.set_exception(error)
    except BaseException:
        for asked in batch:
            asked.answer.cancel()
        raise
    else:
        for asked, group in zip(batch, groups, strict=True):
            if not asked.answer.done():
                asked.answer.set_result(group)
