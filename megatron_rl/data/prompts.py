"""Which examples come next: a cursor over a task's training examples that survives a resumed run."""

from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

import numpy as np
import xxhash

from megatron_rl.data.task import UNBOUNDED

E = TypeVar("E")


class Prompts(Generic[E]):
    """``take(n)`` goes on where the last one ended; ``state()`` is what ``restore`` needs to do so in another process.

    A file is read in epochs: each is a permutation of all rows (or the file's own order), a take may run over its end,
    and no row comes twice in one epoch. A generator is read onwards from a place that depends on the seed: cursors
    with different seeds meet different examples. Not for several threads at once: whoever generates ahead takes in one.
    """

    def __init__(self, examples: Sequence[E], seed: int, shuffle: bool) -> None:
        if not len(examples):
            raise ValueError("prompts need at least one example")
        self.examples, self.seed, self.shuffle = examples, seed, shuffle
        self.position = 0  # examples taken so far
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def take(self, count: int) -> list[E]:
        """The next ``count`` examples."""
        first, self.position = self.position, self.position + count
        return [self.examples[self._index(place)] for place in range(first, self.position)]

    def state(self) -> dict[str, int]:
        """Where the cursor stands, as JSON."""
        return {"position": self.position}

    def restore(self, state: Mapping[str, int]) -> None:
        """Stand where ``state`` was taken."""
        self.position = state["position"]

    def _index(self, place: int) -> int:
        count = len(self.examples)
        if count == UNBOUNDED:
            start = xxhash.xxh3_64_intdigest(f"sampler/{self.seed}".encode()) if self.shuffle else 0
            return (start + place) % count
        epoch, place = divmod(place, count)
        if not self.shuffle:
            return place
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng((self.seed, epoch)).permutation(count)
        return int(self._order[place])
