"""Rounds of rollouts that are made while earlier ones are trained (``rollout.staleness``)."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Generic, TypeVar

_D = TypeVar("_D")
_T = TypeVar("_T")
_LOOK = 0.1  # seconds


class Prefetch(Generic[_D, _T]):
    """The results of ``make(number, draw(number, step))`` for rounds 0, 1, … in order, up to ``ahead`` steps early.

    A step takes one round; with dynamic sampling several, or none where enough was left. Asked for one in step s, it
    begins as many as steps s to s + ahead will take if each takes one, but no more: where they do, what rounds start
    from is at most ``ahead`` steps old when they are taken. ``draw`` is told the step that a round is meant for. It
    runs in the order of the rounds in the caller's thread, ``make`` in threads; with ``ahead`` 0 each is made when it
    is taken, in the caller's thread too. ``number`` is that of the next round that is drawn; rounds that were under way
    in another process (``under_way``) and are ``kept`` are begun as they were drawn there.
    """

    def __init__(self, draw: Callable[[int, int], _D], make: Callable[[int, _D], _T], ahead: int, end: int) -> None:
        self.draw, self.make, self.ahead, self.end = draw, make, ahead, end
        self.number = 0
        self.kept: deque[_D] = deque()
        self._begun: deque[tuple[_D, Future[_T]]] = deque()

    def take(self, step: int) -> _T:
        """The next round, for a step; raises what making it raised."""
        if not self.ahead:
            return self.make(*self._draw(step))
        while len(self._begun) < max(1, min(self.ahead + 1, self.end - step)):
            number, drawn = self._draw(step + len(self._begun))
            self._begun.append((drawn, _begin(self.make, number, drawn)))
        return self._begun.popleft()[1].result()

    def under_way(self) -> list[_D]:
        """What the rounds were drawn as that were begun, or kept, and not taken yet, in their order."""
        return [*(drawn for drawn, _ in self._begun), *self.kept]

    def finish(self, stalled: Callable[[], bool]) -> None:
        """Wait for all that were begun, unless they are ``stalled``; what they raise is raised when they are taken."""
        while wait([future for _, future in self._begun], timeout=_LOOK).not_done and not stalled():
            pass

    def _draw(self, step: int) -> tuple[int, _D]:
        number, self.number = self.number, self.number + 1
        return number, self.kept.popleft() if self.kept else self.draw(number, step)


def _begin(make: Callable[[int, _D], _T], number: int, drawn: _D) -> "Future[_T]":
    """In a thread that does not keep the process from ending."""
    future: Future[_T] = Future()

    def run() -> None:
        try:
            future.set_result(make(number, drawn))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=f"rollout {number}", daemon=True).start()
    return future
