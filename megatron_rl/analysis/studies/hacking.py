"""Signs that a policy earns its reward without learning what it is for."""

from collections.abc import Sequence
from math import isfinite
from statistics import fmean
from typing import Any, NamedTuple

from megatron_rl.analysis.recorded import Recorded, Row

LEAST = 8  # steps that a trend needs
MOVED = 0.02  # of a share, or of the reward's range: less than that has not moved
DISAGREE = 0.25  # |judge - rules| that is worth a look
BOUND = 0.05  # rise of it over the run


class Sign(NamedTuple):
    """Something that was looked for: ``found`` or not, with the numbers; None where it cannot be told."""

    name: str
    found: bool | None
    text: str


def signs(run: Recorded) -> list[Sign]:
    """All that is looked for."""
    rows = run.rows.get("rl", [])
    return [_held_out(run, rows), _judge(rows), _length(rows), _parts(rows)]


def ends(rows: Sequence[Row], key: str) -> tuple[float, float] | None:
    """The means of a number over the first and the last quarter of the rows that have it; None of too few."""
    values = [float(row[key]) for row in rows if isinstance(row.get(key), int | float) and isfinite(row[key])]
    if len(values) < LEAST:
        return None
    quarter = len(values) // 4
    return fmean(values[:quarter]), fmean(values[-quarter:])


def _held_out(run: Recorded, rows: Sequence[Row]) -> Sign:
    name = "reward up while held-out accuracy is down"
    reward = ends(rows, "reward")
    before = [row for row in run.evaluations if row["after"] != "rl"][-1:]
    measured = [row for row in run.evaluations if "sampled/correct" in row]
    during = [float(row["sampled/correct"]) for row in measured if row["after"] == "rl"]
    if reward is None or not during:
        return Sign(name, None, f"it takes {LEAST} RL steps and an evaluation during RL (evaluation.every)")
    start = float(before[0]["sampled/correct"]) if before and "sampled/correct" in before[0] else during[0]
    peak, last = max(start, *during), during[-1]
    up = reward[1] - reward[0] > MOVED * max(1.0, abs(reward[0]))
    text = f"reward {reward[0]:.3f} to {reward[1]:.3f}; held-out {start:.3f}, at best {peak:.3f}, last {last:.3f}"
    return Sign(name, up and last < peak - MOVED, text)


def _judge(rows: Sequence[Row]) -> Sign:
    name = "the judge drifts from the rules"
    keys = [key for key in (rows[-1] if rows else {}) if key.endswith("/disagreement")]
    moved = [(key, found) for key in keys if (found := ends(rows, key))]
    if not moved:
        return Sign(name, None, "no reward was scored by a judge and by rules")
    key, (first, last) = max(moved, key=lambda one: one[1][1])
    return Sign(name, last > DISAGREE and last - first > BOUND, f"{key} {first:.3f} to {last:.3f}")


def _length(rows: Sequence[Row]) -> Sign:
    name = "longer completions, no more right ones"
    length, accuracy = ends(rows, "length"), ends(rows, "accuracy")
    if length is None or accuracy is None:
        return Sign(name, None, f"it takes {LEAST} RL steps with an accuracy")
    found = length[1] > 1.25 * length[0] and accuracy[1] - accuracy[0] < MOVED
    text = f"length {length[0]:.1f} to {length[1]:.1f}; accuracy {accuracy[0]:.3f} to {accuracy[1]:.3f}"
    return Sign(name, found, text)


def _parts(rows: Sequence[Row]) -> Sign:
    name = "reward up while accuracy is down"
    reward, accuracy = ends(rows, "reward"), ends(rows, "accuracy")
    if reward is None or accuracy is None:
        return Sign(name, None, f"it takes {LEAST} RL steps with an accuracy")
    found = reward[1] - reward[0] > MOVED * max(1.0, abs(reward[0])) and accuracy[1] < accuracy[0] - MOVED
    text = f"reward {reward[0]:.3f} to {reward[1]:.3f}; accuracy {accuracy[0]:.3f} to {accuracy[1]:.3f}"
    return Sign(name, found, text)


def as_rows(found: Sequence[Sign]) -> list[dict[str, Any]]:
    """As JSON."""
    return [sign._asdict() for sign in found]
