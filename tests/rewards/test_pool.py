import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import psutil
import pytest

from megatron_rl.errors import InputError
from megatron_rl.rewards.config import RewardsConfig
from megatron_rl.rewards.pool import RewardPool, Scored
from megatron_rl.rewards.sample import Sample
from megatron_rl.rewards.terms import RewardError, bind, score_sample
from tests.conftest import PATIENCE

USER_MODULE = """
import os, re, signal, subprocess, sys, time

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
    return {"score": float(len(sample.response)), "torch": float("torch" in sys.modules), "process": float(os.getpid())}

def hang(sample):
    os.write(1, b"stuck\\n")
    time.sleep(1000)
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
    options = {"workers": 2, "batch_size": 4, "deadline": 1.0, "deadline_score": -7.0} | options
    return RewardsConfig(
        terms={"rewards_of_a_user.reward": 2.0}, args={"rewards_of_a_user.reward": {"log": str(log)}}, **options
    )


def samples(*responses: str) -> list[Sample]:
    return [Sample("Q?", response, "A") for response in responses]


def workers() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if "megatron_rl.rewards.worker" in p.cmdline()]


def wait_for_end(processes: list[psutil.Process]) -> list[psutil.Process]:
    """The processes that do not end."""
    return psutil.wait_procs(processes, timeout=PATIENCE)[1]


def test_the_pool_scores_what_is_scored_in_process_in_order():
    options = RewardsConfig(
        terms={"social_r1": 1.0, "format": 0.2, "sip_content": 0.0},
        args={"social_r1": {"variant": "no_length"}},
        batch_size=7,
    )
    think = "Cue Encoding: Sally puts the ball away. Cue Interpretation: it is safe there now."
    drawn = [
        Sample("Q?", f"<think>{think}{'!' * i}</think>{'<Answer>A</Answer>' * (i % 3)}", "AB"[i % 2], step=4 * i)
        for i in range(100)
    ]
    expected = [Scored(*score_sample(bind(options), sample)) for sample in drawn]
    with RewardPool(options) as pool:
        assert pool.score(drawn) == expected
        assert pool.score(drawn[::-1]) == expected[::-1]  # the same workers again
        assert pool.score([]) == []
        assert pool.metrics() == {"timeouts": 0, "crashes": 0, "restarts": 0}
    weights = {scored.components["social_r1/w_content"] for scored in expected}
    assert len(weights) == 51  # the step reaches the workers: 0, 4 … 200, and constant from there
    assert len({scored.reward for scored in expected}) > 30


@pytest.mark.parametrize("form", ["spin", "backtrack", "sleep"])
def test_a_hanging_sample_is_killed_and_nothing_is_lost(form, user_module):
    drawn = samples(*(f"fine-{i}" for i in range(5)), form, *(f"fine-{i}" for i in range(5, 12)))
    with RewardPool(config(user_module)) as pool:
        before = workers()
        scored = pool.score(drawn)
        children = psutil.Process().children(recursive=True)
        assert [p.name() for p in children if p.name() == "sleep"] == []  # what the reward started is gone too
        assert len(workers()) == 2
        assert len(set(workers()) - set(before)) == 1
        assert pool.metrics() == {"timeouts": 1, "crashes": 0, "restarts": 1}
        assert [s.reward for s in pool.score(samples("a", "bc", "def"))] == [2, 4, 6]
    assert scored[5] == Scored(-7.0, timed_out=True)
    fine = [s for s in drawn if s.response != form]
    assert [s.reward for s in scored if not s.timed_out] == [2.0 * len(s.response) for s in fine]
    assert not any(s.crashed or s.components["rewards_of_a_user.reward/torch"] for i, s in enumerate(scored) if i != 5)
    calls = Counter(user_module.read_text().split())
    assert set(calls.values()) == {1}  # scored once each, before and after the kill
    assert len(calls) == len(drawn) + 3


@pytest.mark.parametrize("form", ["segfault", "exit"])
def test_a_crashing_sample_is_counted_and_nothing_is_lost(form, user_module):
    drawn = samples(f"{form}-1", "a", "bc", f"{form}-2", f"{form}-3", "def")
    with RewardPool(config(user_module, workers=1, deadline=30.0)) as pool:
        scored = pool.score(drawn)
        assert pool.metrics() == {"timeouts": 0, "crashes": 3, "restarts": 3}
    assert [s.reward for s in scored] == [-7, 2, 4, -7, -7, 6]
    assert [s.crashed for s in scored] == [True, False, False, True, True, False]
    assert set(Counter(user_module.read_text().split()).values()) == {1}


def test_a_raising_reward_ends_the_run(user_module):
    pool = RewardPool(config(user_module))
    running = workers()
    with pytest.raises(RewardError) as error:
        pool.score(samples("a", "b", "c", "d", "e", "raise-7", "f"))
    for part in ("rewards_of_a_user.reward", "LookupError: no such thing", "number 5 of 7", "'raise-7'", "'Q?'"):
        assert part in str(error.value)
    assert wait_for_end(running) == []
    with pytest.raises(RuntimeError, match="closed"):
        pool.score(samples("a"))
    pool.close()


def test_a_score_that_is_not_finite_ends_the_run(user_module):
    with RewardPool(config(user_module)) as pool, pytest.raises(RewardError, match="score is inf, not a finite number"):
        pool.score(samples("a", "infinite", "b"))


def test_workers_that_cannot_start(tmp_path, monkeypatch):
    (tmp_path / "rewards_broken_in_workers.py").write_text(BROKEN_IN_WORKERS)
    monkeypatch.syspath_prepend(tmp_path)
    options = RewardsConfig(terms={"rewards_broken_in_workers.reward": 1.0}, workers=1)
    monkeypatch.setenv("BREAK", "exit")
    with pytest.raises(RewardError, match=r"3 reward workers in a row ended .* exit code 5"):
        RewardPool(options)
    monkeypatch.setenv("BREAK", "raise")
    with pytest.raises(RewardError, match="no data file on this node"):
        RewardPool(options)
    assert wait_for_end(workers()) == []


def test_bad_options_start_nothing():
    with pytest.raises(InputError, match=r"rewards\.terms names 'formt'.*rewards\.deadline is -1"):
        RewardPool(RewardsConfig(terms={"formt": 1.0}, deadline=-1))
    assert workers() == []


def test_an_idle_worker_that_ends_is_replaced_without_blame(user_module):
    with RewardPool(config(user_module, deadline=30.0)) as pool:
        workers()[0].kill()
        assert [s.reward for s in pool.score(samples(*"abcdefgh"))] == [2.0] * 8
        assert pool.metrics() == {"timeouts": 0, "crashes": 0, "restarts": 1}
        assert len(workers()) == 2


def test_ctrl_c_is_for_the_trainer(user_module):
    with RewardPool(config(user_module, deadline=30.0)) as pool:
        before = workers()
        for worker in before:
            worker.send_signal(signal.SIGINT)
        assert [s.reward for s in pool.score(samples("a", "bc"))] == [2, 4]
        assert workers() == before
    assert wait_for_end(before) == []


def test_an_interrupted_pool_leaves_no_worker(user_module):
    pool = RewardPool(config(user_module, deadline=100.0))
    running = workers()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with pytest.raises(KeyboardInterrupt):
            pool.score(samples("spin", "sleep"))
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert wait_for_end(running) == []


@pytest.mark.parametrize("stuck", [False, True])
def test_workers_die_with_a_killed_trainer(stuck, user_module):
    script = (
        "import sys\n"
        f"sys.path.insert(0, {str(user_module.parent)!r})\n"
        "from megatron_rl.rewards.config import RewardsConfig\n"
        "from megatron_rl.rewards.pool import RewardPool\n"
        "from megatron_rl.rewards.sample import Sample\n"
        "pool = RewardPool(RewardsConfig(terms={'rewards_of_a_user.hang': 1.0}, deadline=1000.0))\n"
        "print('ready', flush=True)\n"
        + ("pool.score([Sample('Q?', 'R', 'A')] * 2)\n" if stuck else "sys.stdin.read()\n")
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as trainer:
        assert trainer.stdout is not None
        try:
            lines = [trainer.stdout.readline() for _ in range(3 if stuck else 1)]
            running = psutil.Process(trainer.pid).children(recursive=True)
        finally:
            trainer.kill()
    assert lines == [b"ready\n", b"stuck\n", b"stuck\n"][: len(lines)]
    assert len(running) == 2
    assert wait_for_end(running) == []
