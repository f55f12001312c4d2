"""Rollouts that are made while earlier ones are trained (``rollout.staleness``)."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Generic, TypeVar

_D = TypeVar("_D")
_T = TypeVar("_T")
_LOOK = 0.1  # seconds


class Prefetch(Generic[_D, _T]):
    """The results of ``make(step, draw())`` in order, each begun at most ``ahead`` steps before it is taken.

    Asked for step s, it begins all up to s + ahead: what they start from is at most ``ahead`` steps old when they are
    taken. ``draw`` runs in the order of the steps in the caller's thread, ``make`` in threads; with ``ahead`` 0 each is
    made when it is taken, in the caller's thread too.
    """

    def __init__(self, draw: Callable[[], _D], make: Callable[[int, _D], _T], ahead: int, end: int) -> None:
        self.draw, self.make, self.ahead, self.end = draw, make, ahead, end
        self._begun: dict[int, Future[_T]] = {}

    def take(self, step: int) -> _T:
        """The result for a step; raises what making it raised."""
        if not self.ahead:
            return self.make(step, self.draw())
        for later in range(step, min(step + self.ahead + 1, self.end)):
            if later not in self._begun:
                self._begun[later] = _begin(self.make, later, self.draw())
        return self._begun.pop(step).result()

    def finish(self, stalled: Callable[[], bool]) -> None:
        """Wait for all that were begun, unless they are ``stalled``; what they raise is raised when they are taken."""
        while wait(self._begun.values(), timeout=_LOOK).not_done and not stalled():
            pass


def _begin(make: Callable[[int, _D], _T], step: int, drawn: _D) -> "Future[_T]":
    """In a thread that does not keep the process from ending."""
    future: Future[_T] = Future()

    def run() -> None:
        try:
            future.set_result(make(step, drawn))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=f"rollout {step}", daemon=True).start()
    return future
