"""Which of the examples that come next are taken now: easy ones first, or those that are right now and then.

Both only leave examples out of the order that there is without them, for as long as they say so: an example that is
taken comes once in every epoch, as without a curriculum.
"""

import re
from collections.abc import Mapping, Sequence
from math import ceil, floor
from typing import Any, Protocol

import numpy as np
import xxhash

from megatron_rl.data.config import CurriculumConfig
from megatron_rl.data.task import UNBOUNDED, Example
from megatron_rl.errors import InputError

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


class Curriculum(Protocol):
    """What ``Prompts`` asks."""

    strict: bool  # what is not taken must not fill up a batch that is short either

    def takes(self, index: int, place: int, step: int) -> bool:
        """Whether the example ``index``, met at ``place`` of the order, is for a batch of RL step ``step``."""

    def observe(self, index: int, accuracy: float) -> None:
        """An example's completions have been scored: the share of them that is right."""

    def history(self) -> dict[str, float]:
        """What was observed, as JSON."""

    def remember(self, history: Mapping[str, float]) -> None:
        """Go on with what was observed."""


class ByColumn:
    """The easiest examples first: a share of them that grows to all, steadily (competence-based, Platanios et al. 2019,
    arXiv 1903.09848, with a linear course) or in jumps."""

    strict = True

    def __init__(self, values: Mapping[int, float], config: CurriculumConfig, steps: int) -> None:
        """``values``: how hard each example is, by its index."""
        self.config, self.steps = config, steps
        sign = 1 if config.hard == "high" else -1
        order = sorted(values, key=lambda index: (sign * values[index], index))
        self.rank = {index: rank for rank, index in enumerate(order)}

    def share(self, step: int) -> float:
        """Of the examples, those that a batch of a step is drawn from."""
        config = self.config
        done = min(1.0, step / (config.until * self.steps)) if self.steps else 1.0
        if config.schedule == "step":
            done = floor(done * config.stages) / config.stages
        return config.start + (1 - config.start) * done

    def takes(self, index: int, place: int, step: int) -> bool:
        """As ``Curriculum.takes``."""
        return self.rank[index] < ceil(self.share(step) * len(self.rank) - 1e-9)

    def observe(self, index: int, accuracy: float) -> None:
        """Nothing: the column says it all."""

    def history(self) -> dict[str, float]:
        """None."""
        return {}

    def remember(self, history: Mapping[str, float]) -> None:
        """Nothing."""


class ByAccuracy:
    """Examples whose running accuracy lies in a band, those that were not drawn yet, and now and then another one.

    The running accuracy is the mean of the one before and of the newest, so the older an observation, the less it
    counts. Where one pass over all examples does not fill a batch, those that were left out of it do.
    """

    strict = False

    def __init__(self, config: CurriculumConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        self.running: dict[int, float] = {}

    def takes(self, index: int, place: int, step: int) -> bool:
        """As ``Curriculum.takes``."""
        running = self.running.get(index)
        if running is None or self.config.low <= running <= self.config.high:
            return True
        draw = xxhash.xxh3_64_intdigest(f"explore/{self.seed}/{place}".encode()) / 2**64
        return draw < self.config.explore

    def observe(self, index: int, accuracy: float) -> None:
        """As ``Curriculum.observe``."""
        self.running[index] = (self.running[index] + accuracy) / 2 if index in self.running else accuracy

    def history(self) -> dict[str, float]:
        """Index -> running accuracy."""
        return {str(index): value for index, value in self.running.items()}

    def remember(self, history: Mapping[str, float]) -> None:
        """As ``Curriculum.remember``."""
        self.running = {int(index): value for index, value in history.items()}


def make_curriculum(
    config: CurriculumConfig, examples: Sequence[Example], rows: np.ndarray | None, seed: int, steps: int
) -> Curriculum | None:
    """The curriculum over the examples with the indices ``rows`` (None: all) in a run of so many RL steps.

    Raises InputError for examples without the column, or with something in it that is no number.
    """
    if config.by == "none":
        return None
    if rows is None and len(examples) == UNBOUNDED:
        raise InputError(
            f"data.curriculum.by={config.by} needs examples that can be counted, and this task makes them without end: "
            "bound it with data.limit."
        )
    if config.by == "accuracy":
        return ByAccuracy(config, seed)
    indices = range(len(examples)) if rows is None else rows
    return ByColumn({int(i): difficulty(examples[int(i)], config.column) for i in indices}, config, steps)


def cell(example: Example, column: str) -> Any:
    """What an example has in a column (``a.b``: b inside a): its own source, or what its ``extra`` holds; else None."""
    if column == "data_source":
        return example.data_source
    value: Any = example.extra
    if column in example.extra:
        return example.extra[column]
    for name in column.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def difficulty(example: Example, column: str, option: str = "data.curriculum.column") -> float:
    """The number in a column that an option names. Raises InputError where there is none."""
    value = cell(example, column)
    if isinstance(value, str) and (numbers := _NUMBER.findall(value)) and len(numbers) == 1:
        value = float(numbers[0])
    if not isinstance(value, int | float) or not np.isfinite(value):
        there = ", ".join(sorted(map(str, example.extra))) or "none"
        held = "has no such column" if value is None else f"has {value!r} there"
        raise InputError(
            f"{option}={column}: the training example {example.id} {held}, and it must be a number, or a text with one "
            f"number in it. Its columns: {there}."
        )
    return float(value)
