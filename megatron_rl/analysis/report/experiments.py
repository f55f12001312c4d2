"""Runs that differ in their seed alone, taken together: an experiment."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from megatron_rl.analysis.recorded import Recorded, Row
from megatron_rl.analysis.report.blocks import Block, line

SHORT = 3  # options that differ, up to which they name an experiment


@dataclass(frozen=True)
class Experiment:
    """Runs with the same options, but for the seed; ``label`` says what tells them from the others."""

    label: str
    runs: tuple[Recorded, ...]
    colour: int


def experiments(runs: Sequence[Recorded]) -> list[Experiment]:
    """In the order in which their first runs are given."""
    together: dict[str, list[Recorded]] = {}
    for run in runs:
        together.setdefault(repr(sorted(run.experiment.items())), []).append(run)
    differ = {key for key, _ in differences(runs)}
    labels = [_label(some, differ, len(together)) for some in together.values()]
    if len(set(labels)) < len(labels):
        labels = [f"{label} ({some[0].name})" for label, some in zip(labels, together.values(), strict=True)]
    return [Experiment(label, tuple(some), i) for i, (label, some) in enumerate(zip(labels, together.values()))]


def differences(runs: Sequence[Recorded], every: bool = False) -> list[tuple[str, list[Any]]]:
    """Options that are not alike in all runs, and what each has; with ``every`` the seed and names too."""
    options = [run.options if every else run.experiment for run in runs]
    keys = dict.fromkeys(key for own in options for key in own)
    values = [(key, [own.get(key) for own in options]) for key in keys]
    return [(key, found) for key, found in values if any(value != found[0] for value in found)]


def curve(experiment: Experiment, stage: str, value: Callable[[Row], float | None], name: str = "") -> Block | None:
    """A number over the steps of a stage: of one run, or the mean of several seeds and the band they lie in.

    Seeds are compared at the steps that all of them have. ``value`` gives None for a row that has no such number.
    """
    found = [_points(run.rows.get(stage, ()), value) for run in experiment.runs]
    return averaged(experiment, [points for points in found if points], name)


def averaged(experiment: Experiment, found: list[dict[float, float]], name: str = "", marks: bool = False) -> Block | None:
    """The line of several runs' points, x -> y each."""
    if not found:
        return None
    steps = sorted(set.intersection(*map(set, found)))
    values = [[points[step] for points in found] for step in steps]
    band = ([min(some) for some in values], [max(some) for some in values]) if len(found) > 1 else None
    label = name or experiment.label
    return line(label, steps, [fmean(some) for some in values], experiment.colour, band, marks=marks)


def number(key: str) -> Callable[[Row], float | None]:
    """Reads a number of a row."""

    def read(row: Row) -> float | None:
        value = row.get(key)
        return float(value) if isinstance(value, int | float) else None

    return read


def _points(rows: Sequence[Row], value: Callable[[Row], float | None]) -> dict[float, float]:
    return {float(row["step"]): found for row in rows if (found := value(row)) is not None}


def _label(runs: Sequence[Recorded], differ: set[str], count: int) -> str:
    own = {key: value for key, value in runs[0].experiment.items() if key in differ}
    if count > 1 and 0 < len(own) <= SHORT:
        return ", ".join(f"{key}={value}" for key, value in own.items())
    seeds = f" and {len(runs) - 1} other seed{'s' if len(runs) > 2 else ''}" if len(runs) > 1 else ""
    return f"{runs[0].name}{seeds}"
