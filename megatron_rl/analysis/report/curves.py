"""The numbers of the steps: an overview, and every one of them."""

import re
from collections.abc import Sequence
from typing import Any

from megatron_rl.analysis.recorded import Recorded, Row
from megatron_rl.analysis.report.blocks import Block, chart, heading, notes, section, table
from megatron_rl.analysis.report.experiments import Experiment, averaged, curve, number
from megatron_rl.system.screen import duration
from megatron_rl.tracking.names import GROUPS, ROW, find

FIRST = ("reward", "accuracy", "length", "kl", "entropy", "loss", "pair_accuracy")  # of the overview
TITLES = {"rl": "RL", "sft": "SFT", "preference": "Preference", "reward_model": "Reward model"}
CODE = re.compile(r"`([^`]*)`")


def overview(runs: Sequence[Recorded], experiments: Sequence[Experiment], kept: Sequence[str]) -> Block:
    """What a reader wants first: how the runs stand, what was learnt, and what to know of the records."""
    stage = runs[0].main
    charts = [held_out(experiments)] + [metric(experiments, stage, name) for name in FIRST]
    said = [(run.name, note) for run in runs for note in run.notes] + [("", text) for text in kept]
    shown = [block for block in charts if block][:6]
    return section("overview", "Overview", [summary(runs), notes(said), heading("What was learnt"), *shown])


def summary(runs: Sequence[Recorded]) -> Block | None:
    """A row of each run."""
    measures = ["sampled/correct", "greedy/correct"]
    stages = [("before", ""), *((f"after {TITLES[stage]}", stage) for stage in ("sft", "preference", "rl"))]
    shown = [
        (measure, when, after)
        for measure in measures
        for when, after in stages
        if any(_last(run, after, measure) is not None for run in runs)
    ]
    head = ["run", "state", "steps", "seed", *(f"{m.replace('/correct', '')} {when}" for m, when, _ in shown), "time"]
    rows = []
    for run in runs:
        done, asked = run.steps
        cells = [_percent(_last(run, after, measure)) for measure, _, after in shown]
        took = duration(run.seconds) if run.seconds else ""
        rows.append([run.name, run.state, f"{done:,} / {asked:,}", run.seed, *cells, took])
    caption = "Held-out accuracy, the last evaluation of each stage." if shown else ""
    return table(head, rows, "Runs", caption, left=2)


def held_out(experiments: Sequence[Experiment]) -> Block | None:
    """Held-out accuracy over RL; step 0 is the last evaluation before it."""
    series = []
    for experiment in experiments:
        for mode in ("sampled", "greedy"):
            found = [points for run in experiment.runs if (points := _evaluated(run, f"{mode}/correct"))]
            label = f"{experiment.label}, {mode}" if len(experiments) > 1 else mode
            drawn = averaged(experiment, found, label, marks=True)
            series.append(drawn and drawn | {"dash": mode == "greedy"})
    return chart("Held-out accuracy", series, "Questions that it was not trained on.", y="fraction", percent=True)


def metric(experiments: Sequence[Experiment], stage: str, name: str) -> Block | None:
    """A number over a stage's steps."""
    known = find(name)
    unit, text = (known.unit, plain(known.meaning)) if known else ("", "")
    good = f" Good: {plain(known.good)}." if known and known.good else ""
    caption = f"{text[:1].upper()}{text[1:]}.{good}" if text else "A number of the task's or the reward's own."
    series = [curve(experiment, stage, number(name)) for experiment in experiments]
    return chart(name, series, caption, y=unit, percent=unit == "fraction")


def curves(experiments: Sequence[Experiment]) -> Block:
    """Every number of every stage, in the groups of docs/metrics.md."""
    blocks: list[Block | None] = []
    stages = [s for s in ("rl", "preference", "reward_model", "sft") if any(s in run.rows for e in experiments for run in e.runs)]
    for stage in stages:
        names = _names([row for e in experiments for run in e.runs for row in _ends(run.rows.get(stage, []))])
        for title, group in _grouped(names).items():
            charts = [found for name in group if (found := metric(experiments, stage, name))]
            if charts:
                blocks += [heading(f"{TITLES[stage]}: {title}"), *charts]
    intro = "Runs that differ in the seed alone are one line, their mean, with a band from the lowest to the highest."
    return section("curves", "Curves", blocks, intro)


def plain(text: str) -> str:
    """Without the marks of code."""
    return CODE.sub(r"\1", text)


def _grouped(names: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for title, group in GROUPS.items():
        metrics = set(map(id, group.values()))
        own = [name for name in names if (known := find(name)) and id(known) in metrics]
        if own:
            found[CODE.sub(r"\1", title).partition(" (")[0]] = own
    if other := [name for name in names if find(name) is None]:
        found["Others"] = other
    return found


def _names(rows: Sequence[Row]) -> list[str]:
    return [key for key in dict.fromkeys(key for row in rows for key in row) if key not in ROW]


def _ends(rows: Sequence[Row]) -> list[Row]:
    """Rows enough to know which numbers there are: a rare one may be in few."""
    return [*rows[:20], *rows[20::10], *rows[-1:]]


def _evaluated(run: Recorded, key: str) -> dict[float, float]:
    before = [row for row in run.evaluations if row["after"] != "rl" and key in row]
    points = {0.0: float(before[-1][key])} if before else {}
    return points | {float(row["step"]): float(row[key]) for row in run.evaluations if row["after"] == "rl" and key in row}


def _last(run: Recorded, after: str, key: str) -> float | None:
    return next((float(row[key]) for row in reversed(run.evaluations) if row["after"] == after and key in row), None)


def _percent(value: Any) -> str:
    return "" if value is None else f"{100 * value:.1f} %"
