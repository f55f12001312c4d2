"""A user's rewards that misbehave, and the workers that call them."""

from pathlib import Path

import psutil
import pytest

from megatron_rl.data.task import Sample
from megatron_rl.rewards.config import RewardsConfig
from tests.conftest import PATIENCE

USER_MODULE = """
import os, re, signal, subprocess, sys, time

_loaded = []

def reward(sample, log):
    with open(log, "a") as file:
        file.write(sample.response + "\\n")
    match sample.response.split("-")[0]:
        case "spin":
            while True:
                pass
        case "backtrack":
            re.match(r"(a+)+$", "a" * 64 + "b")  # years, in C
        case "sleep":
            subprocess.run(["sleep", "1000"])
        case "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "exit":
            os._exit(3)
        case "raise":
            raise LookupError("no such thing")
        case "infinite":
            return {"score": float("inf")}
        case "leave":
            sys.exit(3)
        case "interrupt":
            raise KeyboardInterrupt
        case "print":
            print("said" * 10_000)
            os.write(1, b"written without an end of line")
        case "fork":
            os.fork()  # and the child returns too
        case "daemon":
            if os.fork() == 0:
                time.sleep(1000)  # holds all that the worker has open
            os._exit(7)
        case "chdir":
            os.chdir("/")
        case "names":
            return {"x" * 5_000 + str(i): 1.0 for i in range(200)} | {"score": 3.0}
        case "long":
            raise LookupError("one line\\n" + "and another\\n" * 100_000)
    return {"score": float(len(sample.response)), "torch": float("torch" in sys.modules), "process": float(os.getpid())}

def hang(sample):
    os.write(2, b"stuck\\n")
    time.sleep(1000)

def slow_start(sample):
    if not _loaded:
        time.sleep(7.0)  # longer than rewards.deadline
        _loaded.append("model")
    return 1.0

def report(sample, scale=1.0):
    if sample.response == "unjudged":
        time.sleep(1000)
    if sample.response == "misjudged":
        return {"right": 1.0}
    return {"correct": scale * len(sample.response), "process": os.getpid()}
"""
BROKEN_IN_WORKERS = """
import os, sys

if sys.argv[0].endswith("worker.py"):
    if os.environ["BREAK"] == "exit":
        os._exit(5)
    raise LookupError("no data file on this node")

def reward(sample):
    return {"score": 1.0}
"""


@pytest.fixture
def user_module(tmp_path, monkeypatch) -> Path:
    """A folder on sys.path with a user's rewards; returns the file in which every call is noted."""
    (tmp_path / "rewards_of_a_user.py").write_text(USER_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "calls.txt"


def config(log: Path, **options) -> RewardsConfig:
    options = {
        **{"workers": 2, "batch_size": 4, "deadline": 5.0, "first_deadline": 5.0, "deadline_score": -7.0},
        **options,
    }
    return RewardsConfig(
        terms={"rewards_of_a_user.reward": 2.0}, args={"rewards_of_a_user.reward": {"log": str(log)}}, **options
    )


def samples(*responses: str) -> list[Sample]:
    return [Sample("Q?", response, "A") for response in responses]


def workers() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if "megatron_rl.rewards.workers.worker" in p.cmdline()]


def wait_for_end(processes: list[psutil.Process]) -> list[psutil.Process]:
    """The processes that do not end."""
    return psutil.wait_procs(processes, timeout=PATIENCE)[1]


def rewards_of_a_user():
    import rewards_of_a_user

    return rewards_of_a_user
