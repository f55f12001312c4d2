"""The numbers of the steps: an overview, and every one of them."""

import re
from collections.abc import Sequence
from typing import Any

from megatron_rl.analysis.recorded import Recorded, Row
from megatron_rl.analysis.report.blocks import Block, chart, heading, notes, section, table
from megatron_rl.analysis.report.experiments import Experiment, averaged, curve, number
from megatron_rl.system.supervision.screen import duration
from megatron_rl.tracking.names import GROUPS, ROW, find

FIRST = ("reward", "accuracy", "length", "kl", "entropy", "loss", "pair_accuracy")  # of the overview
TITLES = {"rl": "RL", "sft": "SFT", "preference": "Preference", "reward_model": "Reward model"}
CODE = re.compile(r"`([^`]*)`")


def overview(runs: Sequence[Recorded], experiments: Sequence[Experiment]) -> Block:
    """What a reader wants first: how the runs stand, what was learnt, and what to know of the records."""
    stage = next((run.main for run in runs if run.main == "rl"), runs[0].main)
    charts = [held_out(experiments)] + [metric(experiments, stage, name) for name in FIRST]
    said = [(run.name if len(runs) > 1 else "", note) for run in runs for note in run.notes]
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
        rows.append(
            [
                run.name,
                run.state,
                f"{done:,} / {asked:,}" if asked else f"{done:,}",
                run.seed,
                *cells,
                took,
            ]
        )
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
    caption = "Of questions that it was not trained on, over the steps of RL."
    if any(one and one["dash"] for one in series):
        caption += " Dashed: greedy."
    return chart("held-out accuracy", series, caption, y="fraction", percent=True, legend=False)


def metric(experiments: Sequence[Experiment], stage: str, name: str, said: bool = True) -> Block | None:
    """A number over a stage's steps; ``said``: with what it means."""
    known = find(name)
    unit, text = (known.unit, plain(known.meaning)) if known else ("", "")
    good = f" Good: {plain(known.good)}." if known and known.good else ""
    caption = f"{text[:1].upper()}{text[1:]}.{good}" if text and said else ""
    series = [curve(experiment, stage, number(name)) for experiment in experiments]
    return chart(name, series, caption, y=unit, percent=unit == "fraction", legend=False)


def curves(experiments: Sequence[Experiment]) -> Block:
    """Every number of every stage, in the groups of docs/metrics.md."""
    blocks: list[Block | None] = []
    runs = [run for experiment in experiments for run in experiment.runs]
    for stage in ("rl", "preference", "reward_model", "sft"):
        rows = [row for run in runs for row in run.rows.get(stage, [])]
        still: dict[str, set[float]] = {}  # numbers that never change need no chart
        for title, group in _grouped(_names(rows)).items():
            values = {name: {row[name] for row in rows if name in row} for name in group}
            still |= {name: found for name, found in values.items() if len(found) == 1 and len(rows) > 1}
            charts = [metric(experiments, stage, name) for name in group if name not in still]
            if any(charts):
                blocks += [heading(f"{TITLES[stage]}: {title}"), *charts]
        unmoved = [[name, f"{value:g}", _meaning(name)] for name, (value,) in still.items()]
        blocks.append(table(["number", "value", "meaning"], unmoved, f"{TITLES[stage]}: never changed", left=3))
    return section("curves", "Curves", blocks)


def _meaning(name: str) -> str:
    known = find(name)
    return plain(known.meaning) if known else ""


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


def _evaluated(run: Recorded, key: str) -> dict[float, float]:
    before = [row for row in run.evaluations if row["after"] != "rl" and key in row]
    points = {0.0: float(before[-1][key])} if before else {}
    during = [row for row in run.evaluations if row["after"] == "rl" and key in row]
    return points | {float(row["step"]): float(row[key]) for row in during}


def _last(run: Recorded, after: str, key: str) -> float | None:
    return next((float(row[key]) for row in reversed(run.evaluations) if row["after"] == after and key in row), None)


def _percent(value: Any) -> str:
    return "" if value is None else f"{100 * value:.1f} %"
