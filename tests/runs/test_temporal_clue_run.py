"""The commands of docs/recipes/temporal_clue.md: the whole tiny run with fewer steps, and puzzles written to a file."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_rl.data.config import PuzzlesConfig
from megatron_rl.data.tasks.temporal_clue.sizes import problems
from megatron_rl.tracking.names import find
from tests.conftest import PATIENCE, ROOT
from tests.runs.gate import UNHURRIED
from tests.test_docs import blocks

PAGE = (ROOT / "docs" / "recipes" / "temporal_clue.md").read_text(encoding="utf-8")
FEWER = (
    "sft.steps=150",
    "run.steps=3",
    "evaluation.prompts=32",
    "tracking.wandb=off",
    "tracking.tensorboard=false",
    *UNHURRIED,
)


def command(*words: str, folder: Path) -> str:
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    first = [sys.executable, "-m", "megatron_rl.cli"]
    done = subprocess.run([*first, *words], cwd=folder, env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_tiny_recipe(tmp_path: Path) -> None:
    assert "temporal_clue.tiny" in PAGE
    out = command("train", "temporal_clue.tiny", f"run.folder={tmp_path}", *FEWER, folder=tmp_path)
    assert "sampled, partial" in out
    lines = (tmp_path / "temporal_clue_tiny" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert all(find(name) for row in rows for name in row)
    steps = [row for row in rows if row["stage"] == "rl"]
    assert [row["step"] for row in steps] == [1, 2, 3]
    for row in steps:
        assert row["reward"] == pytest.approx(row["reward/temporal_clue/score"])
        assert row["engine_kl_k3"] < 1e-2 and row["reward_crashes"] == row["reward_timeouts"] == 0
    before, warm, _ = [row for row in rows if row["stage"] == "eval"]
    assert before["greedy/format"] < 0.5 < warm["greedy/format"]  # the form is what is learned first
    assert warm["greedy/partial"] > before["greedy/partial"]
    drawn = [json.loads(line) for line in (tmp_path / "temporal_clue_tiny" / "completions.jsonl").open()]
    assert {row["id"].partition("/")[0] for row in drawn if "evaluation" in row} == {"heldout"}


def test_puzzles_for_the_large_recipes(tmp_path: Path) -> None:
    """The sizes that the page names are possible; a file of smaller ones is what a curriculum needs."""
    line, _ = [line for block in blocks(PAGE) for line in block.splitlines() if " data generate " in line]
    words = shlex.split(line)[1:]
    sizes = [word.removeprefix("data.puzzles.").split("=") for word in words if word.startswith("data.puzzles.")]
    assert problems(PuzzlesConfig(**dict(sizes))) == []
    smaller = [word for word in words if not word.startswith(("data.puzzles.", "processes"))]
    command(*smaller, "count=5", folder=tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "puzzles.jsonl").open()]
    assert len(rows) == 5 and all(row["num_clues"] > 0 and row["solution"] for row in rows)
