"""Shared fixtures: real torch.distributed jobs on this machine."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PATIENCE = 3600.0  # seconds, of every wait in a test: it guards against waiting for ever, and measures nothing


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture(scope="session")
def run_ranks(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., None]:
    """run_ranks(script, world, *args): run a script as ``world`` torch.distributed ranks; fail with their output."""

    def run(script: Path, world: int, *args: object, timeout: float = PATIENCE) -> None:
        env = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "OMP_NUM_THREADS": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            "WORLD_SIZE": str(world),
        }
        command = [sys.executable, "-W", "ignore", str(script), *map(str, args)]
        folder = tmp_path_factory.mktemp("ranks")
        ranks = []
        for r in range(world):
            with (folder / f"{r}.log").open("w") as log:
                rank_env = env | {"RANK": str(r), "LOCAL_RANK": str(r)}
                ranks.append(subprocess.Popen(command, env=rank_env, stdout=log, stderr=subprocess.STDOUT))
        deadline = time.monotonic() + timeout
        try:
            while any(rank.poll() is None for rank in ranks) and not any(rank.poll() for rank in ranks):
                assert time.monotonic() < deadline, f"{script.name} still runs; see {folder}"
                time.sleep(0.05)
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
        # the first to fail says why; the others were killed (negative) or lost their peer
        failed = sorted((r for r in range(world) if ranks[r].returncode), key=lambda r: ranks[r].returncode < 0)
        assert not failed, (folder / f"{failed[0]}.log").read_text()[-4000:]

    return run
