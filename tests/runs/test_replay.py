"""Steps of a run, repeated from its checkpoints and saved rollouts."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_rl.rewards.workers.pool import Scored
from megatron_rl.rollout.saved import file_of, load_rollouts, saved_steps
from megatron_rl.tracking.run_folder import RunFolder
from tests.conftest import PATIENCE, ROOT
from tests.runs.gate import UNHURRIED

SMALL = [
    *UNHURRIED,
    *("sft.steps=2", "run.steps=3", "run.save_every=1", "run.keep=3", "run.resume=auto", "tracking.rollouts=1"),
    *("rollout.prompts_per_step=4", "rollout.group_size=2", "evaluation.prompts=0", "evaluation.every=0"),
    *("tracking.wandb=off", "tracking.tensorboard=false", "algorithm.entropy_coef=0.01", "run.export=false"),
]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "megatron_rl.cli", *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("runs")
    done = command("train", "quickstart", f"run.folder={folder}", "run.name=whole", *SMALL)
    assert done.returncode == 0, done.stderr
    return RunFolder(folder / "whole")


def test_rollouts_are_saved(run: RunFolder) -> None:
    assert saved_steps(run.rollouts) == [1, 2, 3]
    saved = load_rollouts(file_of(run.rollouts, 2), Scored)
    assert [len(group) for group in saved.groups] == [2] * 4 and len(saved.advantages) == 8
    assert saved.facts["weight_version"] == 2 and saved.facts["step"] == 2
    assert {rollout.versions[0][0] for group in saved.groups for rollout in group} == {2}


def test_a_step_comes_out_the_same(run: RunFolder) -> None:
    """Drawn again, and learned again."""
    done = command("replay", str(run.path), "--step", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "from step-1-000002;" in done.stdout and "rollouts: 8 of 8 are equal to the last bit" in done.stdout
    metrics = next(line for line in done.stdout.splitlines() if line.startswith("metrics: "))
    assert (words := metrics.split())[1] == words[3] and int(words[1]) > 30
    repeated = RunFolder(run.path / "replay" / "step-000003")
    assert [path.name for path in sorted(repeated.checkpoints.iterdir())] == ["step-1-000002", "step-1-000003"]


def test_what_is_missing_is_learned_again(run: RunFolder, tmp_path: Path) -> None:
    """Without the checkpoint right before it, from an older one; and what differs is said."""
    copy = RunFolder(tmp_path / "copy")
    shutil.copytree(run.path, copy.path, symlinks=True)
    shutil.rmtree(copy.checkpoints / "step-1-000002")
    lines = copy.metrics_file.read_text().replace('"stage": "rl", "step": 3,', '"stage": "rl", "step": 3, "odd": 1.0,')
    copy.metrics_file.write_text(lines)
    done = command("replay", str(copy.path), "--step", "3", "--train-only")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "from step-1-000001, and 1 step from there" in done.stdout and "rollouts:" not in done.stdout
    assert "  odd: 1.0 was recorded, nan now" in done.stdout
    assert done.stdout.count("was recorded") == 1


def test_what_cannot_be_repeated_is_said(run: RunFolder) -> None:
    early = command("replay", str(run.path), "--step", "1")
    assert early.returncode == 2
    assert "Checkpoints: step-1-000001 (step 1), step-1-000002 (step 2), step-1-000003 (step 3)" in early.stderr
    assert "saved rollouts: 1-3" in early.stderr and "run.save_every" in early.stderr
    assert "has not recorded step 9" in command("replay", str(run.path), "--step", "9").stderr
