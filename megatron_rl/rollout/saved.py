"""All rollouts of one RL step as a Parquet file, one row each, to the last bit: docs/runs.md lists the columns.

The file's metadata holds, under ``megatron_rl``, a JSON object with what belongs to the step as a whole: ``step``,
``seed``, ``weight_version`` (of the policy that learned from them), ``cursor`` and ``metrics`` (of the drawing).
"""

import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_rl.data.task import Example
from megatron_rl.errors import InputError
from megatron_rl.rollout.rollout import Rollout
from megatron_rl.system.files import write_bytes

KEY = b"megatron_rl"  # of the file's metadata
_NAME = re.compile(r"step-(\d{6,})\.parquet")
_TOKENS = ("tokens", "drawn", "logprobs", "rewards", "weights", "hinted")  # of a rollout: one value a token, or None
_ARRAYS = {"tokens": np.int64, "drawn": np.bool_, "hinted": np.bool_}  # the others are float32


@dataclass
class Saved:
    """What a file holds."""

    groups: list[list[Rollout]]
    advantages: list[float]  # one a rollout, group after group; empty: nobody has learned from them
    facts: dict[str, Any]  # of the step as a whole


def file_of(folder: Path, step: int) -> Path:
    """The file of a step, from 1."""
    return folder / f"step-{step:06d}.parquet"


def saved_steps(folder: Path) -> list[int]:
    """The steps that have a file, in their order."""
    found = (_NAME.fullmatch(path.name) for path in folder.glob("step-*.parquet"))
    return sorted(int(match[1]) for match in found if match)


def save_rollouts(folder: Path, saved: Saved) -> None:
    """Write the file of step ``facts["step"]``: whole, or not at all; in place of an earlier one."""
    import pyarrow
    import pyarrow.parquet

    rows = [_row(rollout, group, saved.facts["step"]) for group, of in enumerate(saved.groups) for rollout in of]
    for row, advantage in zip(rows, saved.advantages, strict=bool(saved.advantages)):
        row["advantage"] = advantage
    table = pyarrow.Table.from_pylist(rows, schema=_schema().with_metadata({KEY: json.dumps(saved.facts)}))
    memory = io.BytesIO()
    pyarrow.parquet.write_table(table, memory, compression="zstd")
    folder.mkdir(exist_ok=True)
    write_bytes(file_of(folder, saved.facts["step"]), memory.getbuffer())


def load_rollouts(path: Path, scored: Callable[..., Any]) -> Saved:
    """What was saved. ``scored`` makes what scoring said, of its fields by name.

    Raises InputError for a file that is none.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path, partitioning=None)
        facts = json.loads((table.schema.metadata or {})[KEY])
        rows = table.to_pylist()
        groups: list[list[Rollout]] = []
        for row in rows:
            if row["group"] == len(groups):
                groups.append([])
            groups[-1].append(_rollout(row, scored))
    except (pyarrow.ArrowException, OSError, KeyError, ValueError, TypeError, IndexError) as error:
        raise InputError(f"{path} holds no rollouts that were saved ({type(error).__name__}: {error}).") from error
    advantages = [row["advantage"] for row in rows]
    return Saved(groups, [] if None in advantages else advantages, facts)


def differences(one: Sequence[Sequence[Rollout]], other: Sequence[Sequence[Rollout]]) -> list[str]:
    """In what the rollouts of two drawings of a step differ, at most a sentence a rollout; empty: in no bit."""
    if [len(group) for group in one] != [len(group) for group in other]:
        return [f"{len(one)} groups of {sum(map(len, one))} rollouts, not {len(other)} of {sum(map(len, other))}"]
    found = []
    pairs = [(a, b) for mine, theirs in zip(one, other, strict=True) for a, b in zip(mine, theirs, strict=True)]
    for number, (a, b) in enumerate(pairs):
        if said := _difference(a, b):
            found.append(f"rollout {number} (example {a.example.id}): {said}")
    return found


def _difference(one: Rollout, other: Rollout) -> str:
    if one.example.id != other.example.id:
        return f"example {one.example.id}, not {other.example.id}"
    shortest = min(len(one.tokens), len(other.tokens))
    for name in _TOKENS:
        a, b = getattr(one, name), getattr(other, name)
        if (a is None) != (b is None):
            return f"{name} on one side only"
        if a is not None and not np.array_equal(a, b):
            places = np.flatnonzero(a[:shortest] != b[:shortest])
            place = int(places[0]) if len(places) else shortest
            values = [x[place] if place < len(x) else "none" for x in (a, b)]
            return f"{name} from token {place} on: {values[0]}, not {values[1]}"
    if one.finish != other.finish or one.versions != other.versions:
        return f"finish and weight versions {one.finish}, {one.versions}, not {other.finish}, {other.versions}"
    if one.scored.reward != other.scored.reward or dict(one.scored.components) != dict(other.scored.components):
        return f"reward {one.scored.reward}, not {other.scored.reward}"
    return ""


def _row(rollout: Rollout, group: int, step: int) -> dict[str, Any]:
    example, scored = rollout.example, rollout.scored
    arrays = {name: getattr(rollout, name) for name in _TOKENS}
    experts = rollout.experts
    return {
        "step": step,
        "group": group,
        "id": example.id,
        "data_source": example.data_source,
        "prompt": example.prompt,
        "answer": json.dumps(example.answer, default=str),
        "extra": json.dumps(example.facts),
        "text": rollout.text,
        "prompt_tokens": rollout.prompt,
        "finish": rollout.finish,
        "versions": [{"version": version, "tokens": count} for version, count in rollout.versions],
        "round": rollout.round,
        "hint_rate": rollout.hint_rate,
        "reward": scored.reward,
        "components": json.dumps(dict(scored.components)),
        "report": json.dumps(scored.report),
        "timed_out": scored.timed_out,
        "crashed": scored.crashed,
        "failure": scored.failure,
        "scored_step": scored.step,
        "experts": None if experts is None else experts.ravel(),
        "experts_per_token": 0 if experts is None else experts.shape[1],
    } | {name if name != "rewards" else "token_rewards": value for name, value in arrays.items()}


def _rollout(row: dict[str, Any], scored: Callable[..., Any]) -> Rollout:
    def array(name: str, column: str = "") -> Any:
        value = row[column or name]
        return None if value is None else np.array(value, dtype=_ARRAYS.get(name, np.float32))

    example = Example(
        id=row["id"],
        prompt=row["prompt"],
        answer=json.loads(row["answer"]),
        data_source=row["data_source"],
        extra=json.loads(row["extra"]),
    )
    per_token = row["experts_per_token"]
    return Rollout(
        example=example,
        tokens=array("tokens"),
        drawn=array("drawn"),
        logprobs=array("logprobs"),
        prompt=row["prompt_tokens"],
        text=row["text"],
        finish=row["finish"],
        versions=tuple((span["version"], span["tokens"]) for span in row["versions"]),
        experts=np.array(row["experts"], np.int16).reshape(-1, per_token) if per_token else None,
        rewards=array("rewards", "token_rewards"),
        weights=array("weights"),
        hinted=array("hinted"),
        round=row["round"],
        hint_rate=row["hint_rate"],
        scored=scored(
            reward=row["reward"],
            components=json.loads(row["components"]),
            report=json.loads(row["report"]),
            timed_out=row["timed_out"],
            crashed=row["crashed"],
            failure=row["failure"],
            step=row["scored_step"],
        ),
    )


def _schema() -> Any:
    import pyarrow as pa

    many, span = pa.list_, pa.struct([("version", pa.int32()), ("tokens", pa.int32())])
    return pa.schema(
        [
            ("step", pa.int32()),
            ("group", pa.int32()),
            ("id", pa.string()),
            ("data_source", pa.string()),
            ("prompt", pa.string()),
            ("answer", pa.string()),
            ("extra", pa.string()),
            ("text", pa.string()),
            ("prompt_tokens", pa.int32()),
            ("tokens", many(pa.int64())),
            ("drawn", many(pa.bool_())),
            ("logprobs", many(pa.float32())),
            ("finish", pa.string()),
            ("versions", many(span)),
            ("reward", pa.float64()),
            ("components", pa.string()),
            ("report", pa.string()),
            ("timed_out", pa.bool_()),
            ("crashed", pa.bool_()),
            ("failure", pa.string()),
            ("scored_step", pa.int32()),
            ("advantage", pa.float64()),
            ("round", pa.int32()),
            ("hint_rate", pa.float64()),
            ("hinted", many(pa.bool_())),
            ("token_rewards", many(pa.float32())),
            ("weights", many(pa.float32())),
            ("experts", many(pa.int16())),
            ("experts_per_token", pa.int32()),
        ]
    )
