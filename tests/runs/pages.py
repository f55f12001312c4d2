"""Running what the page of a recipe shows."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.conftest import PATIENCE, ROOT
from tests.test_docs import blocks

QUICK = ["tracking.wandb=off", "tracking.tensorboard=false", "run.export=false", "evaluation.greedy=false"]


def commands(recipe: str) -> list[str]:
    """The commands of a recipe's page, in their order."""
    text = (ROOT / "docs" / "recipes" / f"{recipe}.md").read_text(encoding="utf-8")
    lines = [line for block in blocks(text) for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    return [line for line in lines if line.startswith(("megatron-rl ", "python "))]


def run(command: str, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, with more arguments."""
    first, *words = shlex.split(command)
    begin = [sys.executable, "-m", "megatron_rl.cli"] if first == "megatron-rl" else [sys.executable]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*begin, *words, *more], cwd=folder, env=env, capture_output=True, text=True, timeout=PATIENCE
    )


def train(command: str, folder: Path, *more: str) -> dict[str, list[dict[str, Any]]]:
    """The rows of a run's metrics, by stage; asserts that it ended well."""
    done = run(command, folder, *QUICK, *more, "run.name=run", "run.resume=never")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found: dict[str, list[dict[str, Any]]] = {}
    newest = max((folder / "runs").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    for line in (newest / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found.setdefault(row["stage"], []).append(row)
    return found


def check(command: str, folder: Path) -> list[str]:
    """What is wrong with a run of a real size, one sentence each."""
    return run(command.replace("megatron-rl train", "megatron-rl check"), folder).stdout.splitlines()[1:]
