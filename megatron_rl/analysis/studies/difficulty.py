"""Accuracy by what makes a question hard or easy, as the task says it (Temporal Clue: the number of clues)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from megatron_rl.analysis.completions import Seen

CLASSES = 5  # of a number with more values
MOST = 12  # values of a text that make classes


def by_difficulty(completions: Sequence[Seen]) -> dict[str, list[dict[str, Any]]]:
    """By each fact of the examples that has two values or more: ``class``, ``count``, ``accuracy``, and accuracy in
    the ``first`` and ``last`` quarter of the steps, where there are completions of them.

    Numbers with more than ``CLASSES`` values are cut into classes that hold equally many.
    """
    judged = [one for one in completions if one.right is not None]
    if not judged:
        return {}
    low, high = min(one.step for one in judged), max(one.step for one in judged)
    found = {}
    for fact in dict.fromkeys(key for one in judged for key in one.facts):
        own = [one for one in judged if fact in one.facts]
        labels = classes([one.facts[fact] for one in own])
        if labels is None:
            continue
        rows = []
        for label in dict.fromkeys(sorted(labels)):
            some = [one for one, its in zip(own, labels, strict=True) if its == label]
            row = {"class": label[1], "count": len(some), "accuracy": _accuracy(some)}
            row["first"] = _accuracy([one for one in some if one.step <= low + (high - low) / 4])
            row["last"] = _accuracy([one for one in some if one.step >= high - (high - low) / 4])
            rows.append(row)
        found[fact] = rows
    return found


def classes(values: Sequence[Any]) -> list[tuple[float, str]] | None:
    """A class of each value, with a number to sort it by; None where they make no classes."""
    different = set(map(str, values))
    if len(different) < 2:
        return None
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if not numbers:
        return [(0.0, str(value)) for value in values] if len(different) <= MOST else None
    if len(different) <= CLASSES:
        return [(float(value), f"{value:g}") for value in values]
    edges = np.unique(np.quantile(np.asarray(values, float), np.linspace(0, 1, CLASSES + 1)))
    at = np.clip(np.searchsorted(edges, values, "right") - 1, 0, len(edges) - 2)
    return [(float(i), f"{edges[i]:g} to {edges[i + 1]:g}") for i in at]


def _accuracy(some: Sequence[Seen]) -> float | None:
    return sum(bool(one.right) for one in some) / len(some) if some else None
