"""Whole runs with hints: continued from the middle, and the recipe on files like GSM8K's."""

import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_rl.resharding.folders.fingerprint import fingerprint
from megatron_rl.rollout.strategies.hint_rate import cold_start, fit, gather
from megatron_rl.rollout.strategies.hinted import hint_text
from megatron_rl.tracking.names import find
from megatron_rl.tracking.run_folder import RunFolder
from tests.conftest import PATIENCE, ROOT
from tests.runs.gate import UNHURRIED
from tests.runs.test_train import rows
from tools.make_tiny_model import main as make_tiny_model

QUIET = ["tracking.wandb=off", "tracking.tensorboard=false"]
STEPS = 5
SUMS = [
    *UNHURRIED,
    *("data.limit=6", "data.curriculum.start=1", "sft.steps=20", f"run.steps={STEPS}", "run.save_every=1"),
    *("run.keep=20", "evaluation.prompts=4", "rollout.prompts_per_step=4", "rollout.group_size=8"),
    *("algorithm.hint_coef=0.5", "rollout.hints.rounds=2", "tracking.completions=32", "actor.optimizer.lr=1e-3"),
]


def train(recipe: str, folder: Path, *options: str, status: int = 0) -> str:
    command = [sys.executable, "-m", "megatron_rl.cli", "train", recipe, f"run.folder={folder}", *QUIET, *options]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def completions(run: RunFolder) -> list[dict[str, Any]]:
    found = map(json.loads, run.completions_file.read_text().splitlines())
    return [row for row in found if "evaluation" not in row]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("runs")
    train("seele.sums", folder, "run.name=whole", *SUMS)
    return RunFolder(folder / "whole")


def test_every_visit_begins_with_what_the_last_one_left(whole: RunFolder) -> None:
    """Rates and hints are computed again from what the completions got; advantages are over all rounds."""
    kept: dict[str, float] = {}
    by_group: dict[tuple[int, str], list[dict[str, Any]]] = defaultdict(list)
    found = completions(whole)
    assert len(found) == STEPS * 32
    for place, row in enumerate(found):
        by_group[row["step"], f"{row['id']} {place // 8}"].append(row)
    visited: dict[int, dict[str, float]] = defaultdict(dict)
    for (step, name), group in by_group.items():
        example = name.partition(" ")[0]
        assert [row["round"] for row in group] == [0] * 4 + [1] * 4
        begun = [rates[example] for at, rates in visited.items() if at < step and example in rates]
        seen = [
            (group[first]["hint_rate"], float(np.mean([row["reward"] for row in group[first : first + 4]])))
            for first in (0, 4)
        ]
        steps = json.loads(json.dumps(_steps(group[0])))
        assert seen[0][0] == (begun[-1] if begun else cold_start(len(steps)))
        assert seen[1][0] == fit(gather(seen[:1])).rate(0.5)
        visited[step][example] = kept[example] = fit(gather(seen)).rate(0.5)
        mean = float(np.mean([row["reward"] for row in group]))
        for row in group:
            told = " ".join(hint_text(steps, row["hint_rate"]).split())
            assert " ".join(row["response"].split()).startswith(told)
            assert row["advantage"] == pytest.approx(row["reward"] - mean, abs=1e-6)
    state = json.loads((whole.checkpoints / f"step-1-{STEPS:06d}" / "state.json").read_text())["state"]
    assert state["strategy"] == kept and len(kept) == 6
    steps_of_rl = [row for row in rows(whole) if row["stage"] == "rl"]
    assert all(row["hint_loss"] > 0 and 0 <= row["hint/rate"] <= 1 for row in steps_of_rl)
    assert {name for row in rows(whole) for name in row if find(name) is None} == set()


def _steps(row: dict[str, Any]) -> list[str]:
    """The right solution of a sum, as the task has it."""
    digits = [int(word) for word in row["prompt"].split() if word.isdigit()]
    steps, total = [], digits[0]
    for label, digit in zip("bcdefghi", digits[1:], strict=False):
        steps.append(f"{label} {total} + {digit} = {(total + digit) % 10} .")
        total = (total + digit) % 10
    steps[0] = f"steps: {steps[0]}"
    return [*steps[:-1], rf"{steps[-1]} \boxed{{ {total} }}"]


def test_continued_it_ends_as_if_it_had_not_stopped(whole: RunFolder) -> None:
    run = RunFolder(whole.path.with_name("continued"))
    shutil.copytree(whole.path, run.path, symlinks=True)
    shutil.rmtree(run.export)
    for later in range(3, STEPS + 1):
        shutil.rmtree(run.checkpoints / f"step-1-{later:06d}")
    train("seele.sums", run.path.parent, "run.name=continued", *SUMS)
    assert rows(run) == rows(whole)
    assert run.completions_file.read_bytes() == whole.completions_file.read_bytes()
    assert fingerprint(run.export) == fingerprint(whole.export)


def test_the_recipe_on_rows_like_those_of_gsm8k(tmp_path: Path) -> None:
    lines = [
        {
            "question": f"Ann has {i} cups and Bob {i + 1}. How many cups have they?",
            "answer": f"Ann has <<{i}={i}>>{i}.\nTogether {i}+{i + 1}={2 * i + 1} cups.\n#### {2 * i + 1}",
        }
        for i in range(24)
    ]
    file, model = tmp_path / "train.jsonl", tmp_path / "tiny"
    file.write_text("\n".join(map(json.dumps, lines)))
    make_tiny_model([str(file), str(model), "--vocabulary", "300"])
    options = [f"model.path={model}", f"data.path={file}", "run.name=files"]
    small = ["run.steps=2", "sft.steps=5", "rollout.max_new_tokens=12", "rollout.group_size=4"]
    train("seele.tiny", tmp_path, *options, *small)
    run = RunFolder(tmp_path / "files")
    found = completions(run)
    assert len([row for row in rows(run) if row["stage"] == "rl"]) == 2
    assert all(row["response"].startswith("Ann has ") for row in found if row["round"] == 0)  # one step of two
    file.write_text("\n".join(json.dumps({"question": row["question"], "answer": "7"}) for row in lines))
    said = train("seele.tiny", tmp_path, *options[:2], *small, "sft.steps=0", "run.name=none", status=2)
    assert "rollout.strategy=hinted tells steps of the solution, and training example train/1 has none" in said
    assert not (tmp_path / "none").exists()
