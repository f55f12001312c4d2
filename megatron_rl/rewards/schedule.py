"""The weight of a reward over the steps of RL."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from math import cos, isfinite, pi
from typing import Any

KINDS = ("linear", "cosine", "step")


@dataclass(frozen=True)
class Schedule:
    """A factor of a weight that goes from ``start`` to ``end`` in so many RL ``steps``, and stays there.

    ``linear`` and ``cosine`` move it at every step, the latter slowly at both ends; ``step`` at once, after ``steps``.
    """

    steps: int
    start: float = 1.0
    end: float = 1.0
    kind: str = "linear"

    def factor(self, step: int) -> float:
        """At an RL step, counted from 0."""
        passed = min(1.0, step / self.steps)
        if self.kind == "cosine":
            passed = (1 - cos(pi * passed)) / 2
        elif self.kind == "step":
            passed = float(passed == 1.0)
        return self.start + (self.end - self.start) * passed


def check_schedule(key: str, given: Mapping[str, Any]) -> list[str]:
    """What is wrong with the options of a schedule, which are at ``key``."""
    known, found = [field.name for field in fields(Schedule)], []
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else "."
            found.append(f"{key}.{name} is unknown{hint} A schedule has {', '.join(known)}.")
    steps, kind = given.get("steps"), given.get("kind", "linear")
    if found and "steps" not in given:  # perhaps one of them was meant to be
        steps = 1
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        found.append(f"{key}.steps is {steps!r}; it must be a whole number of RL steps, 1 or more.")
    for name in ("start", "end"):
        value = given.get(name, 1.0)
        if not isinstance(value, int | float) or isinstance(value, bool) or not isfinite(value):
            found.append(f"{key}.{name} is {value!r}; it must be a finite number, by which the weight is multiplied.")
    if kind not in KINDS:
        found.append(f"{key}.kind is {kind!r}; it must be linear, cosine or step.")
    if not found and given.get("start", 1.0) == given.get("end", 1.0):
        found.append(f"{key} has the same start and end: change rewards.terms instead, and leave it away.")
    return found
