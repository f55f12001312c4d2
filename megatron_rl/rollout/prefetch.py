"""Rollouts that are made while earlier ones are trained (``rollout.staleness``)."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Generic, TypeVar

_T = TypeVar("_T")
_LOOK = 0.1  # seconds


class Ahead(Generic[_T]):
    """The results of ``make(step)`` in order, each begun at most ``ahead`` steps before it is taken.

    Asked for step s, it begins all up to s + ahead: what they start from is at most ``ahead`` steps old when they are
    taken. ``ahead`` 0 makes each when it is taken, in the caller's thread.
    """

    def __init__(self, make: Callable[[int], _T], ahead: int, end: int) -> None:
        self.make, self.ahead, self.end = make, ahead, end
        self._begun: dict[int, Future[_T]] = {}

    def take(self, step: int) -> _T:
        """The result for a step; raises what making it raised."""
        if not self.ahead:
            return self.make(step)
        for later in range(step, min(step + self.ahead + 1, self.end)):
            if later not in self._begun:
                self._begun[later] = _begin(self.make, later)
        return self._begun.pop(step).result()

    def finish(self, stalled: Callable[[], bool]) -> None:
        """Wait for all that were begun, unless they are ``stalled``; what they raise is raised when they are taken."""
        while wait(self._begun.values(), timeout=_LOOK).not_done and not stalled():
            pass


def _begin(make: Callable[[int], _T], step: int) -> "Future[_T]":
    """In a thread that does not keep the process from ending."""
    future: Future[_T] = Future()

    def run() -> None:
        try:
            future.set_result(make(step))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=f"rollout {step}", daemon=True).start()
    return future
