"""Which of a task's training examples are trained on: the first ones, or those whose accuracy varied most.

1-shot RLVR (Wang et al. 2025, arXiv 2504.20571) ranks examples by the standard deviation of the accuracies that each
had over the epochs of an earlier run, and trains on the first.
"""

import json
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from megatron_rl.data.config import SelectionConfig
from megatron_rl.data.order.curriculum import cell
from megatron_rl.data.task import UNBOUNDED, Example
from megatron_rl.errors import InputError

_OPTION = "data.selection.rank_by_accuracy_std"


def rank_by_accuracy_std(history: Mapping[str, Sequence[float]]) -> list[str]:
    """The names of a history of accuracies, those first whose population standard deviation (``np.std``) is largest.

    Equal ones keep their order; names without any accuracy come last, with those that were always or never right.
    """
    return sorted(history, key=lambda name: -float(np.std(history[name])) if len(history[name]) else 0.0)


def select(examples: Sequence[Example], config: SelectionConfig, first_number: int = 0) -> np.ndarray | None:
    """Indices (int64) of the examples that are trained on, in their order; None: all, as they are.

    ``first_number``: the number in its id that the first example of the task has. Raises InputError where the history
    is none, or of other examples.
    """
    if len(examples) == UNBOUNDED:
        if config.rank_by_accuracy_std:
            raise InputError(f"{_OPTION} needs examples that can be counted: bound the task with data.limit.")
        return np.arange(config.count) if config.count else None
    order = np.arange(len(examples))
    if config.rank_by_accuracy_std:
        history = read_history(config.rank_by_accuracy_std)
        place = {name: rank for rank, name in enumerate(rank_by_accuracy_std(history))}
        names = [_name(example, config.key, first_number) for example in examples]
        if not any(name in place for name in names):
            raise InputError(
                f"{_OPTION}: {config.rank_by_accuracy_std} has the names {', '.join(list(place)[:3])}, …, and no "
                f"example has one of them; theirs are {', '.join(names[:3])}, …. Say with data.selection.key which "
                "column holds them."
            )
        order = np.array(sorted(order, key=lambda i: place.get(names[i], len(place))))  # without a history: last
    elif not config.count:
        return None
    return order[: config.count] if config.count else order


def read_history(path: str) -> dict[str, list[float]]:
    """Name -> accuracies, of a JSON file. Raises InputError where it holds something else."""
    try:
        found: Any = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{_OPTION}: {path} cannot be read as JSON ({error}).") from error
    fits = isinstance(found, dict) and found and all(map(_accuracies, found.values()))
    if not fits:
        raise InputError(f'{_OPTION}: {path} must be an object of lists of accuracies: {{"0": [0.0, 0.5], …}}.')
    return dict(found)


def _accuracies(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(v, int | float) and not isinstance(v, bool) and isfinite(v) for v in value
    )


def _name(example: Example, key: str, first_number: int) -> str:
    if key:
        value = cell(example, key)
        return "" if value is None else str(value)
    number = example.id.rpartition("/")[2]
    return str(int(number) - first_number) if number.isdecimal() else example.id
