"""Where the seconds of a run go: steps, and the spans inside and between them that have names."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Clock:
    """Measures steps from their begin to their end; evaluations and checkpoints lie between them and are not in them.

    ``earlier``: seconds that earlier attempts of the run took.
    """

    def __init__(self, earlier: float = 0.0, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._spans = now, defaultdict[str, float](float)
        self._started = self._begun = now()
        self._earlier = earlier

    def begin(self) -> None:
        """A step begins now."""
        self._begun = self._now()

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """What is done inside counts as ``time/{name}`` of the next row that ``step`` or ``spans`` gives."""
        started = self._now()
        try:
            yield
        finally:
            self._spans[name] += self._now() - started

    def step(self, tokens: float) -> dict[str, float]:
        """A step ends now: ``time/step``, ``tokens_per_second`` of ``tokens``, and the spans since the last row."""
        seconds = self._now() - self._begun
        return {"time/step": seconds, "tokens_per_second": tokens / seconds if seconds else 0.0} | self.spans()

    def spans(self, *names: str) -> dict[str, float]:
        """The spans of these names, or all, since they were last given; they start anew."""
        chosen = [name for name in (names or tuple(self._spans)) if name in self._spans]
        return {f"time/{name}": self._spans.pop(name) for name in chosen}

    @property
    def seconds(self) -> float:
        """Since the run began, all its attempts together."""
        return self._earlier + self._now() - self._started
