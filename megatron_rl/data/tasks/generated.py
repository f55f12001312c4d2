"""Tasks whose questions are generated: nothing is stored, nothing is downloaded."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar, overload

import xxhash

from megatron_rl.data.task import Example, Report

T = TypeVar("T")

HASHED = 512  # training examples that the fingerprint looks at


class Generated(Sequence[Example]):
    """Example i is ``make(rng, split, id)`` with random numbers of (seed, split, i) alone."""

    def __init__(self, make: Callable[[random.Random, str, str], Example], seed: int, split: str, length: int) -> None:
        self.make, self.seed, self.split, self.length = make, seed, split, length

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.length))]
        if not -self.length <= index < self.length:
            raise IndexError(f"example {index} of {self.length}")
        index %= self.length
        return self.make(random.Random(f"{self.seed}/{self.split}/{index}"), self.split, f"{self.split}/{index}")


@dataclass
class GeneratedTask:
    """A task of generated questions; as ``megatron_rl.data.task.Task``."""

    train: Sequence[Example]
    heldout: Sequence[Example]
    report: Report
    notes: dict[str, int] = field(default_factory=dict)

    def fingerprint(self) -> str:
        """Hash of the held-out examples and of the first training examples (xxh3-128, hex)."""
        digest = xxhash.xxh3_128()
        for example in (*self.train[:HASHED], *self.heldout):
            digest.update(f"{example.id}\n{example.prompt}\n{example.target}\n{example.answer}\n".encode())
        return digest.hexdigest()


def choose(rng: random.Random, items: Sequence[T]) -> T:
    """One of the items; unlike ``rng.choice`` the same in every Python version: only random() promises that."""
    return items[int(rng.random() * len(items))]


def weighted(rng: random.Random, weights: dict[T, float]) -> T:
    """One of the keys, each as likely as its weight says."""
    left = rng.random() * sum(weights.values())
    for name, weight in weights.items():
        left -= weight
        if left < 0:
            return name
    return name
