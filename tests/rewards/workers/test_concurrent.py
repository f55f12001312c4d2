"""Asynchronous rewards in the workers: many at a time, each with a deadline of its own."""

from collections import Counter
from pathlib import Path

import psutil
import pytest

from megatron_rl.data.task import Sample
from megatron_rl.rewards.config import RewardsConfig
from megatron_rl.rewards.workers.pool import RewardPool, Scored
from megatron_rl.rewards.workers.terms import RewardError

USER_MODULE = """
import asyncio, os, time

_under_way = set()
_all = asyncio.Event()

async def reward(sample, log):
    with open(log, "a") as file:
        file.write(sample.response + "\\n")
    match sample.response.split("-")[0]:
        case "hang":
            await asyncio.sleep(1000)
        case "stubborn":
            while True:
                try:
                    await asyncio.sleep(1000)
                except asyncio.CancelledError:
                    pass
        case "stuck":
            time.sleep(1000)
        case "exit":
            os._exit(3)
        case "raise":
            raise LookupError("no such thing")
        case "none":
            return None
    await asyncio.sleep(0)
    return {"score": float(len(sample.response)), "process": float(os.getpid())}

async def together(sample, several):
    _under_way.add(sample.response)
    if len(_under_way) >= several:
        _all.set()
    await _all.wait()  # for ever, were there fewer
    count = len(_under_way)
    await asyncio.sleep(0.001)
    _under_way.discard(sample.response)
    return {"score": 1.0, "count": count}

def plain(sample):
    return 10.0

def report(sample):
    return {"correct": float(sample.response == "right")}
"""
REWARD, TOGETHER, PLAIN = (f"asynchronous_rewards.{name}" for name in ("reward", "together", "plain"))


@pytest.fixture
def log(tmp_path, monkeypatch) -> Path:
    """The file in which every call is noted; the module of the rewards can be imported."""
    (tmp_path / "asynchronous_rewards.py").write_text(USER_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "calls.txt"


def config(log: Path, **options) -> RewardsConfig:
    options = {"workers": 1, "deadline": 5.0, "first_deadline": 5.0, "deadline_score": -7.0, "concurrency": 8} | options
    return RewardsConfig(terms={REWARD: 2.0}, args={REWARD: {"log": str(log)}}, **options)


def samples(*responses: str) -> list[Sample]:
    return [Sample("Q?", response, "A") for response in responses]


def workers() -> set[int]:
    found = psutil.Process().children()
    return {process.pid for process in found if "megatron_rl.rewards.workers.worker" in process.cmdline()}


def test_as_many_are_under_way_as_the_option_says(log):
    """Each waits until there are so many; then none begins before one is done."""
    options = RewardsConfig(
        terms={TOGETHER: 1.0}, args={TOGETHER: {"several": 8}}, workers=2, concurrency=8, deadline=60.0
    )
    with RewardPool(options) as pool:
        scored = pool.score(samples(*map(str, range(100))))
        counts = [s.components[f"{TOGETHER}/count"] for s in scored]
        assert max(counts) == 8 and not any(s.failure for s in scored)


def test_scores_come_back_in_the_order_of_the_samples(log):
    drawn = samples(*("x" * ((7 * i) % 50) for i in range(200)))
    with RewardPool(config(log, workers=3, deadline=30.0, first_deadline=30.0)) as pool:
        scored = pool.score(drawn)
        assert [s.reward for s in scored] == [2.0 * len(s.response) for s in drawn]
        assert len({s.components[f"{REWARD}/process"] for s in scored}) == 3
        assert [s.reward for s in pool.score(samples("a", "bc"))] == [2, 4]  # on the same loops
    assert len(log.read_text().splitlines()) == 202


@pytest.mark.parametrize("form", ["hang", "stubborn"])
def test_one_that_hangs_costs_its_own_score_and_nothing_else(form, log, capsys):
    drawn = samples("a", f"{form}-1", *("x" * i for i in range(2, 40)), f"{form}-2", "b")
    with RewardPool(config(log)) as pool:
        before = workers()
        scored = pool.score(drawn)
        assert workers() == before and len(before) == 1  # it lives on
        assert [s.reward for s in pool.score(samples("a", "bc"))] == [2, 4]
    lost = {i: s for i, s in enumerate(scored) if s.failure}
    expected = Scored(-7.0, timed_out=True, failure="ran past rewards.deadline=5 s")
    assert lost == {1: expected, 40: expected}
    assert [s.reward for i, s in enumerate(scored) if i not in lost] == [
        2.0 * len(s.response) for i, s in enumerate(drawn) if i not in lost
    ]
    assert max(Counter(log.read_text().splitlines()).values()) <= 2  # "a" of both calls
    assert "2 of 42 completions have no score (2 ran past rewards.deadline=5 s)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("form", "failure"), [("stuck", "ran past rewards.deadline=5 s"), ("exit", "ended the worker (exit code 3)")]
)
def test_one_that_stops_the_loop_or_ends_the_worker_costs_its_own_score_alone(form, failure, log):
    """The process is replaced; those that were under way with it are tried again, each by itself."""
    drawn = samples("a", "bc", form, *("x" * i for i in range(3, 20)))
    with RewardPool(config(log)) as pool:
        scored = pool.score(drawn)
        assert len(workers()) == 1
    assert [(i, s.failure) for i, s in enumerate(scored) if s.failure] == [(2, failure)]
    assert [s.reward for i, s in enumerate(scored) if i != 2] == [
        2.0 * len(s.response) for i, s in enumerate(drawn) if i != 2
    ]
    calls = Counter(log.read_text().splitlines())
    assert calls[form] == 2 and max(calls.values()) == 2


def test_what_is_wrong_is_said_with_its_sample(log):
    for form, said in (("raise", "raised LookupError: no such thing"), ("none", "returned None; it must return a")):
        with RewardPool(config(log, deadline=30.0)) as pool, pytest.raises(RewardError) as error:
            pool.score(samples("a", "b", "c", f"{form}-7", "d"))
        assert f"The reward {REWARD!r} (reward in {log.parent}" in str(error.value) and said in str(error.value)
        assert f"number 3 of 5, with prompt 'Q?', response '{form}-7'" in str(error.value)
        assert "raise LookupError" in str(error.value) or form == "none"  # the line that raised
        assert workers() == set()


def test_plain_and_asynchronous_terms_and_the_report_of_one_sample(log):
    from asynchronous_rewards import report

    options = config(log, deadline=30.0)
    options.terms[PLAIN] = 0.5
    with RewardPool(options, report) as pool:
        right, wrong = pool.score(samples("right", "x"))
        assert (right.reward, wrong.reward) == (15.0, 7.0)
        assert list(right.components) == [f"{REWARD}/score", f"{REWARD}/process", f"{PLAIN}/score"]
        assert (right.report, wrong.report) == ({"correct": 1.0}, {"correct": 0.0})
        called = log.read_text()
        assert pool.judge(samples("right", "hang")) == [{"correct": 1.0}, {"correct": 0.0}]
        assert log.read_text() == called  # no reward was wanted


def test_a_step_in_which_all_hang_ends_the_run(log):
    with RewardPool(config(log)) as pool, pytest.raises(RewardError, match=r"No completion of step 1 got a score"):
        pool.score(samples(*(f"hang-{i}" for i in range(40))))
    assert len(log.read_text().splitlines()) <= 24  # given up after 16


def test_a_first_sample_may_take_longer(log):
    with RewardPool(config(log, deadline=5.0, first_deadline=8.0, concurrency=1)) as pool:
        scored = pool.score(samples("hang-1", "a", "hang-2"))
    limits = ["ran past rewards.first_deadline=8 s", "", "ran past rewards.deadline=5 s"]
    assert [s.failure for s in scored] == limits
