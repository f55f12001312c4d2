"""Runs that differ in their seed alone, taken together: an experiment."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from megatron_rl.analysis.recorded import Recorded, Row
from megatron_rl.analysis.report.blocks import Block, line


@dataclass(frozen=True)
class Experiment:
    """Runs with the same options, but for the seed; ``label`` names them."""

    label: str
    runs: tuple[Recorded, ...]
    colour: int


def experiments(runs: Sequence[Recorded]) -> list[Experiment]:
    """In the order in which their first runs are given."""
    together: dict[str, list[Recorded]] = {}
    for run in runs:
        together.setdefault(repr(sorted(run.experiment.items())), []).append(run)
    return [Experiment(_label(some), tuple(some), i) for i, some in enumerate(together.values())]


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


def averaged(
    experiment: Experiment, found: list[dict[float, float]], name: str = "", marks: bool = False
) -> Block | None:
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


def _label(runs: Sequence[Recorded]) -> str:
    names = [run.name for run in runs]
    if len(names) == 1:
        return names[0]
    said = " and ".join(names) if len(names) == 2 else f"{names[0]} and {len(names) - 1} more"
    what = "seeds" if len({run.seed for run in runs}) == len(runs) else "runs"
    return f"{said}: mean and range of {len(names)} {what}"
