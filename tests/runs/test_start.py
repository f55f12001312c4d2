"""Runs that start from another run's checkpoint, and runs that are continued at other parallel sizes."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from megatron_rl.tracking.run_folder import RunFolder
from tests.conftest import PATIENCE, ROOT
from tests.runs.records import rows

SMALL = [
    *("sft.steps=0", "run.save_every=0", "run.resume=auto", "actor.tensor_parallel=2"),
    *("rollout.prompts_per_step=2", "rollout.group_size=2", "evaluation.prompts=0", "evaluation.every=0"),
    *("tracking.wandb=off", "tracking.tensorboard=false", "algorithm.entropy_coef=0.01", "algorithm.kl_coef=0"),
]


def train(folder: Path, name: str, *overrides: str, command: str = "train") -> subprocess.CompletedProcess[str]:
    where = (f"run.folder={folder}", f"run.name={name}")
    return subprocess.run(
        [sys.executable, "-m", "megatron_rl.cli", command, "quickstart", *where, *SMALL, *overrides],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def moments(checkpoint: Path) -> int:
    """How many steps the optimiser in a checkpoint has made."""
    found: Any = torch.load(checkpoint / "common.pt", weights_only=False)["optimizer"]
    steps = {group["step"] for group in _groups(found)}
    assert len(steps) == 1
    return int(steps.pop())


def _groups(tree: Any) -> list[dict[str, Any]]:
    if isinstance(tree, dict):
        own = tree.get("param_groups", [])
        return [*own, *(group for value in tree.values() for group in _groups(value))]
    return []


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("runs")
    done = train(folder, "first", "run.steps=2")
    assert done.returncode == 0, done.stderr
    return RunFolder(folder / "first")


def test_a_run_starts_from_another_and_goes_on_at_other_sizes(first: RunFolder) -> None:
    """With its weights and its moments, two tensor-parallel ranks' on two replicas; then on tensor-parallel ones."""
    folder, other = first.path.parent, ("actor.tensor_parallel=1", "actor.data_parallel=2")
    start = (f"run.start_from={first.path}", "run.start_optimizer=true", "actor.optimizer.beta1=0.8")
    done = train(folder, "second", "run.steps=1", *start, *other)
    assert done.returncode == 0, done.stderr
    second = RunFolder(folder / "second")
    theirs, ours = weights(first.export), weights(second.initial_model)
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[name], ours[name]) for name in theirs)
    updates = 2  # of a step: algorithm.epochs
    assert moments(first.checkpoints / "step-1-000002") == 2 * updates
    assert moments(second.checkpoints / "step-1-000001") == 3 * updates
    one = rows(second)
    assert [(row["stage"], row["step"]) for row in one] == [("rl", 1)]

    done = train(folder, "second", "run.steps=2", *start)
    assert done.returncode == 0, done.stderr
    assert "changed: actor.tensor_parallel 1 -> 2" in done.stdout
    assert [(row["stage"], row["step"]) for row in rows(second)] == [("rl", 1), ("rl", 2)] and rows(second)[0] == one[0]
    assert moments(second.checkpoints / "step-1-000002") == 4 * updates


def test_another_model_is_refused(first: RunFolder) -> None:
    """To continue, and to start from."""
    folder, larger = first.path.parent, "model.architecture.hidden_size=64"
    continued = train(folder, "first", "run.steps=3", larger)
    assert continued.returncode == 2 and "other settings (model.architecture.hidden_size 128 -> 64)" in continued.stderr
    started = train(folder, "third", f"run.start_from={first.path}", larger, command="check")
    assert started.returncode == 2
    assert "has trained another model than this run's: hidden 64, not 128" in started.stdout
    assert not (folder / "third").exists()
