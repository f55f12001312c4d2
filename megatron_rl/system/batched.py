"""Many asynchronous calls of one item as few blocking calls of many."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, TypeVar

_T = TypeVar("_T")
_R = TypeVar("_R")


class Batched(Generic[_T, _R]):
    """An asynchronous function of one item, made of a blocking ``function`` of many, which runs in a thread.

    Calls of one tick of the event loop are answered together, in their order; those that come while ``function`` runs
    are its next call. What it raises is raised by each call that it was to answer. For one event loop.
    """

    def __init__(self, function: Callable[[Sequence[_T]], Sequence[_R]]) -> None:
        self._function = function
        self._waiting: list[tuple[_T, asyncio.Future[_R]]] = []
        self._running: asyncio.Task[None] | None = None

    async def __call__(self, item: _T) -> _R:
        """``function``'s answer for ``item``."""
        answer: asyncio.Future[_R] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, answer))
        if self._running is None:
            self._running = asyncio.create_task(self._run())  # begins when all that is ready now has run
        return await answer

    async def _run(self) -> None:
        while self._waiting:
            calls, self._waiting = [call for call in self._waiting if not call[1].done()], []  # but for cancelled ones
            if not calls:
                break
            try:
                answers = await in_thread(partial(self._function, [item for item, _ in calls]))
            except Exception as error:
                for _, answer in calls:
                    if not answer.done():
                        answer.set_exception(error)
            else:
                for (_, answer), value in zip(calls, answers, strict=True):
                    if not answer.done():
                        answer.set_result(value)
        self._running = None


async def in_thread(function: Callable[[], _R]) -> _R:
    """``function()``, run in a thread that does not keep the process from ending (asyncio.to_thread's would)."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[_R] = loop.create_future()

    def tell(how: Callable[[], None]) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(lambda: None if answer.done() else how())

    def run() -> None:
        try:
            value = function()
        except BaseException as error:
            caught = error if isinstance(error, Exception) else RuntimeError(f"a thread ended by {error!r}")
            tell(lambda: answer.set_exception(caught))
        else:
            tell(lambda: answer.set_result(value))

    threading.Thread(target=run, name="batched", daemon=True).start()
    return await answer
