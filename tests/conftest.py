"""Shared fixtures: real torch.distributed jobs on this machine."""

import importlib.util
import multiprocessing.connection
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_rl.commands import waiting
from megatron_rl.settings import contents
from megatron_rl.system import machine
from megatron_rl.system.channel import LISTENER
from tests import forked
from tests.forked import ROOT as ROOT

PATIENCE = 3600.0  # seconds, of every wait in a test: it guards against waiting for ever, and measures nothing

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # started in a shell's background: runs would not be interrupted
    signal.signal(signal.SIGINT, signal.default_int_handler)

if importlib.util.find_spec("hypothesis"):  # a machine that tests a GPU need not have it
    from hypothesis import HealthCheck, settings

    settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("patient")


def free_port() -> int:
    """A port for a server that takes its time to listen: none of those that the system gives to others meanwhile."""
    return machine.free_low_port()


def meeting_place() -> socket.socket:
    """Where ranks meet: rank 0 takes this socket over, so that nobody else gets its port before it listens."""
    return socket.create_server(("127.0.0.1", 0))


@pytest.fixture(autouse=True)
def silent_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is, commands say nothing of how far they are; tests of that say when they do."""
    monkeypatch.setattr(waiting, "FIRST", PATIENCE)


@pytest.fixture(scope="session")
def run_ranks(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., None]:
    """run_ranks(script, world, *args): run a script as ``world`` torch.distributed ranks; fail with their output."""

    def run(script: Path, world: int, *args: object, timeout: float = PATIENCE) -> None:
        env = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "OMP_NUM_THREADS": "1",
            "MASTER_ADDR": "127.0.0.1",
            "WORLD_SIZE": str(world),
        }
        command = [sys.executable, "-W", "ignore", str(script), *map(str, args)]
        folder = tmp_path_factory.mktemp("ranks")
        ranks = []
        with meeting_place() as listener:
            for r in range(world):
                own = {"RANK": str(r), "LOCAL_RANK": str(r), "MASTER_PORT": str(listener.getsockname()[1])}
                held = [] if r else [listener.fileno()]
                if held:
                    own[LISTENER] = str(held[0])
                with (folder / f"{r}.log").open("w") as log:
                    streams: dict[str, Any] = {"stdout": log, "stderr": subprocess.STDOUT}
                    ranks.append(subprocess.Popen(command, env=env | own, pass_fds=held, **streams))
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


@pytest.fixture(scope="session")
def forked_ranks(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., None]:
    """As ``run_ranks``, of forks: for scripts that import what this process would, under its environment."""

    def run(script: Path, world: int, *args: object, timeout: float = PATIENCE) -> None:
        env = os.environ | forked.SURROUNDINGS | {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1"}
        folder = tmp_path_factory.mktemp("ranks")
        ranks = []
        with meeting_place() as listener:
            env["MASTER_PORT"] = str(listener.getsockname()[1])
            for r in range(world):
                own, log = {"RANK": str(r), "LOCAL_RANK": str(r)}, folder / f"{r}.log"
                streams, held = (Path(os.devnull), log, log), None if r else listener
                ranks.append(forked.start(str(script), list(map(str, args)), env | own, streams, held))
        deadline = time.monotonic() + timeout
        try:
            while any(rank.exitcode is None for rank in ranks) and not any(rank.exitcode for rank in ranks):
                assert time.monotonic() < deadline, f"{script.name} still runs; see {folder}"
                multiprocessing.connection.wait([rank.sentinel for rank in ranks if rank.exitcode is None], 1.0)
        finally:
            for rank in ranks:
                rank.kill()
                rank.join()
        # the first to fail says why; the others were killed (negative) or lost their peer
        failed = sorted((r for r in range(world) if ranks[r].exitcode), key=lambda r: ranks[r].exitcode < 0)
        assert not failed, (folder / f"{failed[0]}.log").read_text()[-4000:]

    return run


@pytest.fixture
def forked_look(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """``check`` looks at tokenizer, rows and Megatron's options in a fork instead of a process from the ground up."""

    def run(command: list[str], input: str, env: dict[str, str], **options: object) -> subprocess.CompletedProcess:
        return forked.run(command, tmp_path_factory.mktemp("look"), input, env)

    monkeypatch.setattr(contents, "subprocess", SimpleNamespace(run=run))
