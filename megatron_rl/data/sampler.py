"""Which examples a step uses."""

from collections.abc import Sequence

import numpy as np
import xxhash

from megatron_rl.data.task import UNBOUNDED, Example


class Sampler:
    """``draw(step)`` depends on (seed, step) alone, so that resuming needs only the number of the step.

    A file is read in epochs: each is a permutation of all rows (or the file's own order), steps run on
    over its end, and no row comes twice in one epoch. A generator is read onwards from a place that
    depends on the seed: samplers with different seeds meet different examples.
    """

    def __init__(self, examples: Sequence[Example], size: int, seed: int, shuffle: bool):
        if not len(examples):
            raise ValueError("a sampler needs at least one example")
        self.examples, self.size, self.seed, self.shuffle = examples, size, seed, shuffle
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def draw(self, step: int) -> list[Example]:
        """The ``size`` examples of a step (0, 1, …)."""
        first = step * self.size
        return [self.examples[self._index(position)] for position in range(first, first + self.size)]

    def _index(self, position: int) -> int:
        count = len(self.examples)
        if count == UNBOUNDED:
            start = xxhash.xxh3_64_intdigest(f"sampler/{self.seed}".encode()) if self.shuffle else 0
            return (start + position) % count
        epoch, place = divmod(position, count)
        if not self.shuffle:
            return place
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng((self.seed, epoch)).permutation(count)
        return int(self._order[place])
