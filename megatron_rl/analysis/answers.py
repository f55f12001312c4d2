"""All studies of a run: as data for a file, and as tables for a terminal."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from megatron_rl.analysis.completions import drawn_in_training, read_completions
from megatron_rl.analysis.recorded import Recorded
from megatron_rl.analysis.studies import aha, difficulty, hacking, languages, lengths, stages
from megatron_rl.tracking.console import summary_table

Measure = Callable[[str], int]


def analyse(run: Recorded, measure: Measure = len, unit: str = "characters") -> dict[str, Any]:
    """What every study finds, as JSON. ``measure``: the length of a reasoning, in ``unit``."""
    seen = read_completions(run, measure)
    drawn = drawn_in_training(seen) or seen
    return _finite(
        {
            "run": run.name,
            "state": run.state,
            "steps": run.steps[0],
            "completions": len(seen),
            "notes": run.notes,
            "languages": languages.mixing(seen) | {"over_time": languages.over_time(seen)},
            "reasoning_length": {
                "unit": unit,
                "against_score": lengths.against_score(seen, "think"),
                "collapse": lengths.collapse(seen, "think"),
                "over_time": lengths.over_time(seen, "think"),
            },
            "aha": aha.words(seen),
            "accuracy_by": difficulty.by_difficulty(drawn),
            "stages": stages.coverage(drawn) | {"over_time": stages.over_time(seen)},
            "signs": hacking.as_rows(hacking.signs(run)),
        }
    )


def tables(found: dict[str, Any]) -> str:
    """The same for a person; what the run has nothing of is left out."""
    made = [
        _languages(found["languages"]),
        *_lengths(found["reasoning_length"]),
        _aha(found["aha"]),
        *(_classes(fact, rows) for fact, rows in found["accuracy_by"].items()),
        _stages(found["stages"]),
        _signs(found["signs"]),
    ]
    head = f"{found['run']}: {found['state']}, {found['steps']:,} steps, {found['completions']:,} completions"
    return "\n\n".join([head, *(f"note: {note}" for note in found["notes"]), *(table for table in made if table)])


def _languages(found: dict[str, Any]) -> str:
    rows = {}
    for name in ("think", "answer"):
        of = found[name]
        if of["total"]:
            shares = {kind: f"{of[kind]:,.0f} ({_percent(of[kind] / of['total'])})" for kind in languages.NAMES}
            rows[name] = shares | {"total": f"{of['total']:,.0f}"}
    return summary_table(rows, [*languages.NAMES, "total"], "Languages, by their letters") if rows else ""


def _lengths(found: dict[str, Any]) -> list[str]:
    result, unit = found["against_score"], found["unit"]
    made = []
    if rows := {
        f"{bin['low']:.0f} to {bin['high']:.0f}": {"completions": f"{bin['count']:,.0f}", "score": f"{bin['mean']:.3f}"}
        for bin in result["bins"]
        if "mean" in bin
    }:
        made.append(
            summary_table(rows, ["completions", "score"], f"Answer's score by length of the reasoning ({unit})")
        )
    if fit := result["line"]:
        made.append(
            f"Least squares: score = {fit['intercept']:.4g} {fit['slope']:+.4g} x length; correlation {fit['r']:+.3f}, "
            f"{result['count']:,} completions."
        )
    if moved := found["collapse"]:
        verdict = "the length has collapsed" if moved["collapsed"] else "no collapse"
        made.append(
            f"Mean length over training: {moved['first']:.1f} at first, {moved['peak']:.1f} at most, "
            f"{moved['last']:.1f} at last: {verdict}."
        )
    return made


def _aha(found: Sequence[dict[str, Any]]) -> str:
    rows = {
        row["word"]: {
            "completions": f"{row['count']:,.0f}",
            "share": _percent(row["share"]),
            "first at": f"{row['first']:.0f}",
        }
        for row in found
    }
    return summary_table(rows, ["completions", "share", "first at"], "Words of second thoughts") if rows else ""


def _classes(fact: str, found: Sequence[dict[str, Any]]) -> str:
    columns = {"accuracy": "accuracy", "first": "first quarter", "last": "last quarter"}
    rows = {
        row["class"]: {"completions": f"{row['count']:,}"}
        | {title: _percent(row[key]) for key, title in columns.items() if row[key] is not None}
        for row in found
    }
    return summary_table(rows, ["completions", *columns.values()], f"Accuracy by {fact}")


def _stages(found: dict[str, Any]) -> str:
    moved = found["over_time"]
    rows = {}
    for name, share in found.items():
        if name != "over_time":
            values = [value for value in moved.get(name, []) if value is not None]
            ends = {"first": _percent(values[0]), "last": _percent(values[-1])} if values else {}
            rows[name] = {"all": _percent(share)} | ends
    title = "Stages of social information processing, and faithful answers"
    return summary_table(rows, ["all", "first", "last"], title) if any(found.get(name) for name in rows) else ""


def _signs(found: Sequence[dict[str, Any]]) -> str:
    said = {True: "YES", False: "no", None: "-"}
    rows = {row["name"]: {"found": said[row["found"]], "numbers": row["text"]} for row in found}
    return summary_table(rows, ["found", "numbers"], "Signs of reward hacking")


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _finite(value: Any) -> Any:
    """The same with None for numbers that JSON has not."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
