"""A run that generates ahead of its training, killed with rounds under way: nothing drawn is lost or used twice."""

import os
import subprocess
import sys
import time
from pathlib import Path

from megatron_rl.actor.checkpoint_folder import latest, read_state
from megatron_rl.rewards.workers.pool import Scored
from megatron_rl.rollout.saved import file_of, load_rollouts, saved_steps
from megatron_rl.tracking.run_folder import RunFolder
from tests.conftest import PATIENCE, ROOT
from tests.runs.gate import HELD
from tests.runs.records import rows

SMALL = [
    *("sft.steps=0", "run.steps=6", "run.save_every=2", "run.resume=auto", "tracking.rollouts=1", "run.export=false"),
    *("rollout.staleness=1", "actor.tensor_parallel=1"),
    *("rollout.prompts_per_step=3", "rollout.group_size=2", "evaluation.prompts=0", "evaluation.every=0"),
    *("tracking.wandb=off", "tracking.tensorboard=false", "algorithm.kl_coef=0"),
    *HELD,
]


def start(folder: Path, name: str) -> subprocess.Popen[str]:
    where = (f"run.folder={folder}", f"run.name={name}")
    return subprocess.Popen(
        [sys.executable, "-m", "megatron_rl.cli", "train", "quickstart", *where, *SMALL],
        env=os.environ | {"PYTHONPATH": str(ROOT), "GATE": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(folder: Path, name: str) -> RunFolder:
    process = start(folder, name)
    _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, error
    return RunFolder(folder / name)


def examples(run: RunFolder) -> list[list[str]]:
    """The ids of every step's batch."""
    groups = [load_rollouts(file_of(run.rollouts, step), Scored).groups for step in saved_steps(run.rollouts)]
    return [[group[0].example.id for group in of] for of in groups]


def test_killed_with_rounds_under_way_every_prompt_is_used_once(tmp_path: Path) -> None:
    whole = finish(tmp_path, "whole")
    run = RunFolder(tmp_path / "killed")
    gate = tmp_path / "closed-5"
    gate.touch()
    process = start(tmp_path, "killed")
    while not run.metrics_file.exists() or '"stage": "rl", "step": 3,' not in run.metrics_file.read_text():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=PATIENCE)
    gate.unlink()
    newest = latest(run.checkpoints)
    assert newest is not None and (state := read_state(newest))["step"] in (2, 4)
    assert [len(indices) for indices, *_ in state["under_way"]] == [3]
    run = finish(tmp_path, "killed")
    assert examples(run) == examples(whole)
    assert len(examples(run)) == 6 and len({name for step in examples(run) for name in step}) == 18
    assert [(row["stage"], row["step"]) for row in rows(run)] == [("rl", step) for step in range(1, 7)]
