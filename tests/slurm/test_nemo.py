"""NeMo-Run's executors, in the environment that `make nemo` makes."""

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.conftest import PATIENCE
from tests.slurm.conftest import SMALL, Site

NEMO = Path(os.environ.get("NEMO", ""), "bin", "python")
SHORT = [*SMALL, "sft.steps=1", "run.steps=1", "actor.tensor_parallel=1"]

pytestmark = pytest.mark.skipif(not NEMO.is_file(), reason="NEMO names no environment with NeMo-Run: make test-slurm")


def launch(site: Site, *arguments: str, env: Mapping[str, str] = os.environ) -> subprocess.CompletedProcess[str]:
    command = [str(NEMO), "-m", "recipes.launch", *arguments]
    env = {**env, **site.env, "NEMORUN_HOME": str(site.folder / "nemo"), "COLUMNS": "300"}
    return subprocess.run(command, cwd=site.folder, env=env, capture_output=True, encoding="utf-8", timeout=PATIENCE)


def test_a_dry_run_shows_the_commands_of_every_seed(site: Site) -> None:
    options = ["--account=main", "--nodes=2", "--seeds=3:5", "--evaluate=false_belief --limit 4", "--export=exported"]
    done = launch(site, "quickstart", "--executor=slurm", "--dry-run", *options, "run.steps=2", env=site.cluster.env)
    assert done.returncode == 0, done.stderr
    assert not (site.folder / "runs").exists()
    for seed in (3, 4):
        for kind in ("train", "evaluate", "export"):
            assert f"Task {kind}-quickstart-{seed}" in done.stdout
    assert done.stdout.count("#SBATCH --nodes=2") == 2 and done.stdout.count("#SBATCH --nodes=1") == 4
    assert site.cluster.run("squeue", "-h").stdout == ""


def test_bad_input_submits_nothing(site: Site) -> None:
    for arguments, expected in (
        (["quickstart", "--executor=local", "run.stepz=2"], "did you mean run.steps"),
        (["quickstart", "--executor=slurm"], "--account"),
    ):
        done = launch(site, *arguments)
        assert done.returncode == 2 and expected in done.stderr
    assert not (site.folder / "nemo" / "experiments").exists()


def test_local_tasks_end_as_their_processes_do(site: Site) -> None:
    """The evaluation begins when the run is complete, and a run that fails is no success."""
    evaluated = "--evaluate=false_belief --limit 4 --max-new-tokens 8 --out evaluated"
    done = launch(site, "quickstart", "--executor=local", evaluated, *SHORT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "train-quickstart: SUCCEEDED" in done.stdout and "evaluate-quickstart: SUCCEEDED" in done.stdout
    assert site.attempts("quickstart") == [0] and list((site.folder / "evaluated").iterdir())

    done = launch(site, "quickstart", "--executor=local", "model.path=/nowhere")
    assert done.returncode == 1 and "train-quickstart: FAILED" in done.stdout


def test_slurm_jobs_of_two_seeds_and_what_depends_on_them(site: Site) -> None:
    options = ["--executor=slurm", "--account=root", "--time=60", "--seeds=0:2", "--export=exported"]
    done = launch(site, "quickstart", *options, *SHORT, env=site.cluster.env)
    assert done.returncode == 0, done.stdout + done.stderr
    for seed in (0, 1):
        manifest = json.loads((site.folder / "runs" / f"quickstart-{seed}" / "manifest.json").read_text())
        assert manifest["seed"] == seed
        assert f"export-quickstart-{seed}: SUCCEEDED" in done.stdout
        assert (site.folder / "exported" / f"quickstart-{seed}" / "config.json").exists()


def test_a_slurm_job_that_fails_is_said_to_have_failed(site: Site) -> None:
    options = ["--executor=slurm", "--account=root", "--time=60"]
    done = launch(site, "quickstart", *options, "model.path=/nowhere", env=site.cluster.env)
    assert done.returncode == 1 and "train-quickstart: FAILED" in done.stdout
