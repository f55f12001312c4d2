"""The scripts as text: what a shell and shellcheck say of them."""

import os
import shutil
import subprocess

import pytest

from tests.conftest import ROOT

SCRIPTS = sorted([*(ROOT / "slurm").glob("*.sbatch"), ROOT / "slurm" / "site.sh"])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_the_shell_can_read_it(script) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_shellcheck_finds_nothing() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(["shellcheck", *map(str, SCRIPTS)], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_no_step_hides_gpus_or_kills_by_name() -> None:
    text = "".join(script.read_text() for script in SCRIPTS)
    assert len(SCRIPTS) == 5 and "--gpus-per-task" not in text and "pkill" not in text


@pytest.mark.parametrize("script", [s for s in SCRIPTS if s.suffix == ".sbatch"], ids=lambda path: path.name)
def test_without_slurm_it_says_how_it_is_submitted(script) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    done = subprocess.run(["bash", str(script), "quickstart"], env=env, capture_output=True, text=True)
    assert done.returncode != 0 and "sbatch" in done.stderr.splitlines()[0].split(": ", 2)[2]
