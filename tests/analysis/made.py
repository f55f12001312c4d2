"""Folders of runs as `train` leaves them, made without training."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_rl.settings.load import load, to_yaml

THINK = (
    "Cue Encoding : the ball moves to the box while Anne is away . Cue Interpretation : Anne believes it is in the "
    "basket . Goal Clarification : where Anne will look first . Response Generation : she will look in the basket ."
)
STAMP = "2026-01-01T00:{:02}:{:02}.000+00:00"


def completion(step: int, number: int, **changed: Any) -> dict[str, Any]:
    """A row of completions.jsonl: right where ``step + number`` is even."""
    right = (step + number) % 2 == 0
    return {
        "step": step,
        "id": f"train/{number}",
        "data_source": "stories",
        "prompt": f"Where will Anne look, story {number}?",
        "response": f"<think> {THINK} </think> <Answer> {'basket' if right else 'box'} </Answer>",
        "answer": "basket",
        "reward": 1.2 if right else 0.2,
        "components": {"answer_in_format/score": float(right), "format/score": 1.0},
        "report": {"correct": float(right), "faithful": float(right)},
        "advantage": 0.5 if right else -0.5,
        "finish_reason": "stop",
        "tokens": 40 + number,
        "extra": {"num_clues": number},
    } | changed


def evaluated(label: str, step: int, number: int, right: bool, **changed: Any) -> dict[str, Any]:
    """A row of an evaluation."""
    row = completion(step, 0 if right else 1 - step % 2, id=f"heldout/{number}", mode="greedy", evaluation=label)
    row["response"] = f"<think> {THINK} </think> <Answer> {'basket' if right else 'box'} </Answer>"
    row["report"] = {"correct": float(right)}
    for key in ("reward", "components", "advantage"):
        del row[key]
    return row | changed


def numbers(step: int, **changed: float) -> dict[str, Any]:
    """A row of metrics.jsonl, of an RL step."""
    return {
        "stage": "rl",
        "step": step,
        "timestamp": STAMP.format(step // 60, step % 60),
        "reward": step / 10,
        "accuracy": min(1.0, step / 10),
        "length": 40.0 + step,
        "tokens": 400.0,
        "kl": 0.01 * step,
        "reward/answer_in_format/score": step / 20,
        "reward/format/score": 1.0,
        "time/step": 2.0,
        "time/generate": 0.5,
        "time/update": 1.0,
        "time/swap": 0.01,
        "swap_bytes": 2e6,
        "replicas_differ": 0.0,
        "tokens_per_second": 200.0,
    } | changed


def make_run(
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    completions: Sequence[Mapping[str, Any]] = (),
    overrides: Sequence[str] = (),
    complete: int = 0,
) -> Path:
    """A run's folder with these rows; ``complete``: the step at which it was."""
    folder.mkdir(parents=True, exist_ok=True)
    config, wrong = load("quickstart", [f"run.name={folder.name}", "run.steps=10", *overrides])
    assert not wrong
    (folder / "config.yaml").write_text(to_yaml(config))
    manifest: dict[str, Any] = {"name": folder.name, "plan_hash": "abc", "attempts": [{"gpus": 0, "cores": 2}]}
    if complete:
        manifest["completed"] = {"stage": "rl", "step": complete}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    write(folder / "metrics.jsonl", rows)
    if completions:
        write(folder / "completions.jsonl", completions)
    return folder


def write(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """As JSON lines."""
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
