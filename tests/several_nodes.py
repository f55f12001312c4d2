"""Commands started as Slurm starts them, once on each of several machines.

The machines are this one; who may (root) gives each but the first a process namespace of its own, so that none can read
another's memory.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

_APART = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]


def start_on(nodes: int, folder: Path, *arguments: str) -> list[subprocess.Popen[str]]:
    """``megatron-rl`` with these arguments on so many nodes, in ``folder``; what they print is in nodeN.log there."""
    apart = bool(shutil.which(_APART[0])) and subprocess.run([*_APART, "true"], capture_output=True).returncode == 0
    return [_start(node, nodes, folder, apart and node > 0, arguments) for node in range(nodes)]


def _start(node: int, nodes: int, folder: Path, apart: bool, arguments: tuple[str, ...]) -> subprocess.Popen[str]:
    slurm = {"JOB_ID": "4711", "STEP_ID": "0", "NODEID": str(node)}
    slurm |= dict.fromkeys(("JOB_NUM_NODES", "STEP_NUM_NODES", "STEP_NUM_TASKS"), str(nodes))
    env = os.environ | {f"SLURM_{name}": value for name, value in slurm.items()}
    env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [*(_APART if apart else []), sys.executable, "-m", "megatron_rl.cli", *arguments]
    with (folder / f"node{node}.log").open("w") as log:
        return subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=subprocess.STDOUT, text=True)
