"""A machine without internet: `make wheelhouse` here, `pip install --no-index` there."""

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import PATIENCE, ROOT


def run(*command: str, **options) -> str:
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=PATIENCE, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_what_is_in_the_wheelhouse_is_enough(tmp_path: Path) -> None:
    house, there = tmp_path / "wheelhouse", tmp_path / "there"
    venv = Path(sys.prefix)
    variables = (f"VENV={venv}", f"WHEELHOUSE={house}", "EXTRAS=math")
    said = run("make", "-C", str(ROOT), "-o", f"{venv}/torch", "wheelhouse", *variables)
    names = [path.name.partition("-")[0] for path in house.iterdir()]
    assert {"megatron_rl", "torch", "megatron_core", "transformers", "math_verify"} <= set(names)
    assert all(path.suffix == ".whl" for path in house.iterdir())
    assert f"{len(names)} wheels" in said

    run(sys.executable, "-m", "venv", str(there))
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "PYTHON"))} | {
        "PIP_CONFIG_FILE": os.devnull
    }
    offline = ["--no-index", "--find-links", str(house), "-c", str(ROOT / "constraints.txt"), "megatron-rl[math]"]
    run(str(there / "bin" / "pip"), "install", "-q", "--no-compile", *offline, env=env)
    checked = run(str(there / "bin" / "megatron-rl"), "check", "quickstart", cwd=tmp_path, env=env)
    assert "quickstart: nothing is wrong." in checked
