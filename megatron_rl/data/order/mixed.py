"""The cursor that a configuration asks for: one task's, or several at once, each with its own."""

from collections.abc import Mapping, Sequence

import numpy as np
import xxhash

from megatron_rl.data.config import DataConfig
from megatron_rl.data.order.curriculum import make_curriculum
from megatron_rl.data.order.mixture import Chained, Mixture, parts, weights
from megatron_rl.data.order.selection import select
from megatron_rl.data.prompts import Cursor, Prompts
from megatron_rl.data.registry import trains_on_files
from megatron_rl.data.task import UNBOUNDED, Example, Task
from megatron_rl.errors import InputError


class MixedPrompts:
    """Each of several tasks' cursors in its turn: always that whose share of what was drawn is furthest behind its
    weight, so that after n examples each has given its weight x n, up to one."""

    def __init__(self, examples: Chained, prompts: Mapping[str, Prompts], shares: Mapping[str, float]) -> None:
        self._chained, self.prompts, self.shares = examples, prompts, shares
        self.drawn = dict.fromkeys(prompts, 0)

    @property
    def examples(self) -> Sequence[Example]:
        """As ``Cursor.examples``."""
        return self._chained

    def take(self, count: int, step: int = 0) -> list[Example]:
        """As ``Cursor.take``."""
        return [self._chained[index] for index in self.draw(count, step)]

    def draw(self, count: int, step: int = 0) -> list[int]:
        """As ``Cursor.draw``."""
        names = []
        for number in range(sum(self.drawn.values()) + 1, sum(self.drawn.values()) + count + 1):
            name = max(self.prompts, key=lambda n: self.shares[n] * number - self.drawn[n])
            self.drawn[name] += 1
            names.append(name)
        of = {name: iter(prompts.draw(names.count(name), step)) for name, prompts in self.prompts.items()}
        return [self._chained.place(name, next(of[name])) for name in names]

    def state(self) -> dict[str, int]:
        """As ``Cursor.state``: ``drawn/NAME`` and ``position/NAME`` of each task."""
        return {f"drawn/{name}": count for name, count in self.drawn.items()} | {
            f"position/{name}": prompts.position for name, prompts in self.prompts.items()
        }

    def restore(self, state: Mapping[str, int]) -> None:
        """As ``Cursor.restore``; of a run that has not begun, {"position": 0} will do."""
        for name, prompts in self.prompts.items():
            self.drawn[name] = state.get(f"drawn/{name}", 0)
            prompts.position = state.get(f"position/{name}", 0)

    def observe(self, index: int, accuracy: float) -> None:
        """As ``Cursor.observe``."""
        name, own = self._chained.of(index)
        self.prompts[name].observe(own, accuracy)

    def history(self) -> dict[str, float]:
        """As ``Cursor.history``."""
        return {
            f"{name}/{index}": value
            for name, prompts in self.prompts.items()
            for index, value in prompts.history().items()
        }

    def remember(self, history: Mapping[str, float]) -> None:
        """As ``Cursor.remember``."""
        for name, prompts in self.prompts.items():
            mine = f"{name}/"
            prompts.remember({key.removeprefix(mine): v for key, v in history.items() if key.startswith(mine)})


def make_prompts(config: DataConfig, task: Task, seed: int, steps: int = 0) -> Cursor:
    """The cursor over a task's training examples. ``steps``: of RL, over which a curriculum goes and in which examples
    are repeated to the batch; 0: of another stage, without either.

    Raises InputError where the options do not fit the examples.
    """
    if not isinstance(task, Mixture):
        return _prompts(config, task.train, seed, steps)
    prompts = {}
    for name, part in parts(config).items():
        own = xxhash.xxh3_64_intdigest(f"{seed}/{name}".encode()) >> 1
        try:
            prompts[name] = _prompts(part, task.tasks[name].train, own, steps)
        except InputError as error:
            raise InputError(f"data.mixture.{name}: {error}") from error
    return MixedPrompts(task.chained, prompts, weights(config))


def _prompts(config: DataConfig, examples: Sequence[Example], seed: int, steps: int) -> Prompts:
    rows = select(examples, config.selection, first_number=int(trains_on_files(config)))
    curriculum = make_curriculum(config.curriculum, examples, rows, seed, steps) if steps else None
    if not (repeated := config.repeat_to_batch if steps else 0):
        return Prompts(examples, seed, config.shuffle, rows, curriculum)
    if rows is None:
        rows = np.arange(min(repeated, len(examples)))
    if min(len(rows), len(examples)) < repeated:
        there = "endlessly many" if len(rows) == UNBOUNDED else str(len(rows))
        raise InputError(f"data.repeat_to_batch is {repeated}, and there are {there} training examples: lower it.")
    return Prompts(examples, seed, False, rows[:repeated])
