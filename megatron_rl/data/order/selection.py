"""Which of a task's training examples are trained on: the first ones, those whose accuracy varied most, or a tier.

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
from megatron_rl.data.order.curriculum import cell, difficulty
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
        if config.rank_by_accuracy_std or config.column:
            option = _OPTION if config.rank_by_accuracy_std else "data.selection.column"
            raise InputError(f"{option} needs examples that can be counted: bound the task with data.limit.")
        return np.arange(config.count) if config.count else None
    order = _tier(examples, config)
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
    elif not config.count and not config.column:
        return None
    return order[: config.count] if config.count else order


def _tier(examples: Sequence[Example], config: SelectionConfig) -> np.ndarray:
    """The indices of the examples whose number in a column lies between two; of all where none is named."""
    if not config.column:
        return np.arange(len(examples))
    low = -np.inf if config.least is None else config.least
    high = np.inf if config.most is None else config.most
    values = np.array([difficulty(example, config.column, "data.selection.column") for example in examples])
    kept = np.flatnonzero((values >= low) & (values <= high))
    if not len(kept):
        raise InputError(
            f"data.selection.column={config.column}: no training example has a number from {low:g} to {high:g} there; "
            f"theirs go from {values.min():g} to {values.max():g}. Change data.selection.least or data.selection.most."
        )
    return kept


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
