"""Tasks whose questions are generated: nothing is stored, nothing is downloaded."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import xxhash

from megatron_rl.data.config import DataConfig
from megatron_rl.data.task import UNBOUNDED, Example, Examples, Report

T = TypeVar("T")
Make = Callable[[random.Random, str, str], Example]  # (random numbers, split, id)

HASHED = 512  # training examples that the fingerprint looks at


class Generated(Examples):
    """Example i is ``make(rng, split, id)`` with random numbers of (seed, split, i) alone."""

    def __init__(self, make: Make, seed: int, split: str, length: int) -> None:
        self.make, self.seed, self.split, self.length = make, seed, split, length

    def __len__(self) -> int:
        return self.length

    def example(self, index: int) -> Example:
        """As ``Examples.example``."""
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
            digest.update("\n".join(example.compared or ()).encode())
        return digest.hexdigest()


def generate(make: Make, seed: int, limit: int, heldout: int, report: Report) -> GeneratedTask:
    """Questions without end for training (or the first ``limit``), and so many held out."""
    train = Generated(make, seed, "train", limit or UNBOUNDED)
    return GeneratedTask(train, Generated(make, seed, "heldout", heldout), report)


def check_prompts(config: DataConfig, longest: int) -> list[str]:
    """What is wrong with the room for prompts, of which the task's longest has so many tokens."""
    if 0 < config.max_prompt_tokens < longest:
        most = config.max_prompt_tokens
        return [f"data.max_prompt_tokens is {most}; data.task={config.task} needs {longest} or more."]
    return []


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
