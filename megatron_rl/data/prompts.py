"""Which examples come next: a cursor over a task's training examples that survives a resumed run."""

from collections.abc import Mapping, Sequence
from typing import Generic, Protocol, TypeVar

import numpy as np
import xxhash

from megatron_rl.data.order.curriculum import Curriculum
from megatron_rl.data.task import UNBOUNDED, Example

E = TypeVar("E")


class Cursor(Protocol):
    """What a run draws its examples with: ``Prompts``, or several of them (``order.mixed.MixedPrompts``)."""

    @property
    def examples(self) -> Sequence[Example]:
        """All of them."""

    def draw(self, count: int, step: int = 0) -> list[int]:
        """Indices of the next ``count`` examples, for a batch of RL step ``step``."""

    def take(self, count: int, step: int = 0) -> list[Example]:
        """The next ``count`` examples."""

    def state(self) -> dict[str, int]:
        """Where the cursor stands, as JSON."""

    def restore(self, state: Mapping[str, int]) -> None:
        """Stand where ``state`` was taken."""

    def observe(self, index: int, accuracy: float) -> None:
        """Completions of an example have been scored: the share of them that is right."""

    def history(self) -> dict[str, float]:
        """What was observed and counts for what comes next, as JSON."""

    def remember(self, history: Mapping[str, float]) -> None:
        """Go on with a ``history``."""


class Prompts(Generic[E]):
    """``take(n)`` goes on where the last one ended; ``state()`` is what ``restore`` needs to do so in another process.

    A file is read in epochs: each is a permutation of all rows (or the file's own order), a take may run over its end,
    and no row comes twice in one epoch. A generator is read onwards from a place that depends on the seed: cursors
    with different seeds meet different examples. Not for several threads at once: whoever generates ahead takes in one.

    ``rows``: the indices of the examples that there are, in their own order; None: all. A ``curriculum`` leaves out
    some for a while; its observations are a second part of the state (``history``), for they come later than the draws.
    """

    def __init__(
        self,
        examples: Sequence[E],
        seed: int,
        shuffle: bool,
        rows: np.ndarray | None = None,
        curriculum: Curriculum | None = None,
    ) -> None:
        self.count = len(examples) if rows is None else len(rows)
        if not self.count:
            raise ValueError("prompts need at least one example")
        self.examples, self.seed, self.shuffle, self.rows, self.curriculum = examples, seed, shuffle, rows, curriculum
        self.position = 0  # examples met so far
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def take(self, count: int, step: int = 0) -> list[E]:
        """As ``Cursor.take``."""
        return [self.examples[index] for index in self.draw(count, step)]

    def draw(self, count: int, step: int = 0) -> list[int]:
        """As ``Cursor.draw``."""
        if self.curriculum is None:
            first, self.position = self.position, self.position + count
            return [self._index(place) for place in range(first, self.position)]
        taken: list[int] = []
        left: list[int] = []
        while len(taken) < count:
            index = self._index(self.position)
            (taken if self.curriculum.takes(index, self.position, step) else left).append(index)
            self.position += 1
            if len(left) + len(taken) >= self.count and not self.curriculum.strict:
                taken += left[: count - len(taken)]
                left = []
        return taken

    def state(self) -> dict[str, int]:
        """As ``Cursor.state``."""
        return {"position": self.position}

    def restore(self, state: Mapping[str, int]) -> None:
        """As ``Cursor.restore``."""
        self.position = state["position"]

    def observe(self, index: int, accuracy: float) -> None:
        """As ``Cursor.observe``."""
        if self.curriculum is not None:
            self.curriculum.observe(index, accuracy)

    def history(self) -> dict[str, float]:
        """As ``Cursor.history``."""
        return self.curriculum.history() if self.curriculum is not None else {}

    def remember(self, history: Mapping[str, float]) -> None:
        """As ``Cursor.remember``."""
        if self.curriculum is not None:
            self.curriculum.remember(history)

    def _index(self, place: int) -> int:
        row = self._row(place)
        return row if self.rows is None else int(self.rows[row])

    def _row(self, place: int) -> int:
        if self.count == UNBOUNDED:
            start = xxhash.xxh3_64_intdigest(f"sampler/{self.seed}".encode()) if self.shuffle else 0
            return (start + place) % self.count
        epoch, place = divmod(place, self.count)
        if not self.shuffle:
            return place
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng((self.seed, epoch)).permutation(self.count)
        return int(self._order[place])
