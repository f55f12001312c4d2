"""One cluster for all tests, and folders that jobs are submitted from."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.slurm.cluster import Cluster, missing

# Holds a run up after a step as long as a file closed-STEP is there.
GATE = """
import os
import time
from pathlib import Path

from megatron_rl.data.task import Sample


def held(sample: Sample) -> float:
    metrics = Path("runs/held/metrics.jsonl")
    done = metrics.read_text().count('"stage": "rl"') if metrics.exists() else 0
    while Path(f"closed-{done}").exists() and "RANK" in os.environ:  # else it is only being checked
        Path(f"waiting-{done}").touch()
        time.sleep(0.1)
    return 0.0
"""
SMALL = [
    *("sft.steps=5", "run.steps=4", "evaluation.every=0", "evaluation.prompts=4", "tracking.wandb=off"),
    *("rollout.prompts_per_step=4", "rollout.group_size=2", "tracking.tensorboard=false", "run.save_every=0"),
    *("launch.meet_seconds=3600", "rollout.sglang.start_seconds=3600"),
]
HELD = ["run.name=held", "rewards.terms.gate.held=1", "rewards.deadline=3600", "rewards.first_deadline=3600"]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    if lacking := missing():
        pytest.skip(f"Slurm is not installed ({', '.join(lacking)}): `make test-slurm` installs it where it may")
    with Cluster() as cluster:
        yield cluster


class Site:
    """A folder on the cluster's shared file system, with the scripts and a reward that can be held up."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        (folder / "slurm").symlink_to(ROOT / "slurm")
        (folder / "gate.py").write_text(GATE)
        self.env = {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", "VENV": sys.prefix, "OMP_NUM_THREADS": "1"}

    def train(self, *arguments: str, script: str = "slurm/train.sbatch", options: tuple[str, ...] = ()) -> int:
        """Submit a small quick start; returns the job's number."""
        return self.cluster.sbatch(*options, script, *arguments, env=self.env, cwd=self.folder)

    def close(self, step: int) -> None:
        """Have a run with the options HELD wait after a step."""
        (self.folder / f"closed-{step}").touch()

    def waits(self, job: int, step: int) -> None:
        """Wait until it does; fails when it ends before."""
        self.cluster.while_it_runs(job, (self.folder / f"waiting-{step}").exists, f"it does not come to step {step}")

    def open(self, step: int) -> None:
        """Let it go on."""
        (self.folder / f"closed-{step}").unlink()

    def metrics(self, name: str) -> list[dict[str, Any]]:
        """The recorded numbers, without those that a clock gave."""
        clocked = ("time/", "tokens_per_second", "mfu", "timestamp", "memory/")
        lines = (self.folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(line).items() if not k.startswith(clocked)} for line in lines]

    def attempts(self, name: str) -> list[int]:
        """Exit codes of a run's attempts."""
        manifest = json.loads((self.folder / "runs" / name / "manifest.json").read_text())
        return [attempt.get("ended", {}).get("code") for attempt in manifest["attempts"]]


@pytest.fixture
def site(cluster: Cluster, tmp_path: Path) -> Site:
    return Site(cluster, tmp_path)
