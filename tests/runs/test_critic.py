"""A run of PPO: the critic learns first alone and then beside the policy, and continues bit-identically with it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from megatron_rl.tracking.names import find
from megatron_rl.tracking.run_folder import RunFolder
from tests.conftest import PATIENCE, ROOT
from tests.runs.gate import UNHURRIED

OPTIONS = [
    *UNHURRIED,
    *("algorithm.name=ppo", "critic.warmup_steps=1", "critic.optimizer.lr=0.001", "sft.steps=0", "run.steps=3"),
    *("run.save_every=1", "run.keep=9", "run.resume=auto", "evaluation.every=0", "evaluation.prompts=2"),
    *("rollout.prompts_per_step=4", "rollout.group_size=2", "rollout.max_new_tokens=24", "evaluation.greedy=false"),
    # random weights earn nothing in the quick start: here, longer completions do
    *("rewards.terms={length_window: 1.0}", "rewards.args={length_window: {l_min: 60}}", "tracking.wandb=off"),
]


def train(run: RunFolder) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "megatron_rl.cli", "train", "quickstart", *OPTIONS]
    place = [f"run.folder={run.path.parent}", f"run.name={run.path.name}"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([*command, *place], env=env, capture_output=True, text=True, timeout=PATIENCE)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = RunFolder(tmp_path_factory.mktemp("runs") / "whole")
    done = train(run)
    assert done.returncode == 0, done.stderr
    return run


def rows(run: RunFolder) -> list[dict[str, Any]]:
    """The recorded steps, without what a clock gave."""
    clocked = ("time/", "tokens_per_second", "mfu", "timestamp", "memory/")
    lines = map(json.loads, run.metrics_file.read_text().splitlines())
    return [{k: v for k, v in row.items() if not k.startswith(clocked)} for row in lines if row["stage"] == "rl"]


def test_the_critic_learns_first_alone(whole: RunFolder) -> None:
    first, *later = rows(whole)
    assert {name for row in (first, *later) for name in row if find(name) is None} == set()
    assert "loss" not in first and first["value_grad_norm"] > 0 and first["value_learning_rate"] == 0.001
    assert all(row["grad_norm"] > 0 and row["value_grad_norm"] > 0 for row in later)
    assert 0 < first["value_mean"] < 0.1  # of two updates; the head begins at zero
    assert abs(later[-1]["value_mean"]) > abs(first["value_mean"])
    assert 0.0 < first["return_mean"] < 1.0
    before, after = (load_file(folder / "model.safetensors") for folder in (whole.initial_model, whole.export))
    assert before.keys() == after.keys() and "score.weight" not in after  # the export is the policy
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_both_continue_bit_identically(whole: RunFolder) -> None:
    """From the checkpoint after the first step, as a run that was killed in the second."""
    run = RunFolder(whole.path.with_name("continued"))
    shutil.copytree(whole.path, run.path, symlinks=True)
    shutil.rmtree(run.export)
    for checkpoint in sorted(run.checkpoints.glob("step-*")):
        if not checkpoint.name.endswith("000001"):
            shutil.rmtree(checkpoint)
    done = train(run)
    assert done.returncode == 0, done.stderr
    assert rows(run) == rows(whole)
    one, other = (load_file(folder / "model.safetensors") for folder in (run.export, whole.export))
    assert all(torch.equal(one[name], other[name]) for name in one)
    exported: Path = run.path / "converted"
    last = max(run.checkpoints.glob("step-*"), key=lambda path: path.name)
    command = [sys.executable, "-m", "megatron_rl.cli", "convert", "megatron-to-hf", str(last), str(exported)]
    converted = subprocess.run([*command, "--model", str(run.initial_model)], capture_output=True, text=True)
    assert converted.returncode == 0, converted.stderr
    mine = load_file(exported / "model.safetensors")  # the policy alone is converted
    assert mine.keys() == one.keys() and all(torch.equal(mine[name], one[name]) for name in one)
