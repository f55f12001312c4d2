import signal
import subprocess
import sys
import threading
from collections import Counter
from functools import partial
from math import isfinite
from pathlib import Path

import psutil
import pytest

from megatron_rl.data.task import Sample
from megatron_rl.errors import InputError
from megatron_rl.rewards.config import RewardsConfig
from megatron_rl.rewards.workers.pool import RewardPool, Scored
from megatron_rl.rewards.workers.terms import RewardError, bind, score_sample
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
        time.sleep(1.5)
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
        **{"workers": 2, "batch_size": 4, "deadline": 1.0, "first_deadline": 1.0, "deadline_score": -7.0},
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
    with pytest.raises(RuntimeError, match="closed"):
        pool.score(drawn)
    weights = {scored.components["social_r1/w_content"] for scored in expected}
    assert len(weights) == 51  # the step reaches the workers: 0, 4 … 200, and constant from there
    assert len({scored.reward for scored in expected}) > 30


@pytest.mark.parametrize("form", ["spin", "backtrack", "sleep"])
def test_a_hanging_sample_is_killed_and_nothing_is_lost(form, user_module, capsys):
    drawn = samples(*(f"fine-{i}" for i in range(5)), form, *(f"fine-{i}" for i in range(5, 12)))
    with RewardPool(config(user_module)) as pool:
        before = workers()
        scored = pool.score(drawn)
        children = psutil.Process().children(recursive=True)
        assert [p.name() for p in children if p.name() == "sleep"] == []  # what the reward started is gone too
        assert len(workers()) == 2
        assert len(set(workers()) - set(before)) == 1
        assert [s.reward for s in pool.score(samples("a", "bc", "def"))] == [2, 4, 6]
    assert scored[5] == Scored(-7.0, timed_out=True, failure="ran past rewards.deadline=1 s")
    said = "warning: step 1: 1 of 13 completions have no score (1 ran past rewards.deadline=1 s); their reward is"
    assert capsys.readouterr().out == f"{said} rewards.deadline_score=-7\n"
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
    assert [s.reward for s in scored] == [-7, 2, 4, -7, -7, 6]
    assert [s.crashed for s in scored] == [True, False, False, True, True, False]
    how = {"segfault": "SIGSEGV", "exit": "exit code 3"}[form]
    assert Counter(s.failure for s in scored) == {f"ended the worker ({how})": 3, "": 3}
    assert set(Counter(user_module.read_text().split()).values()) == {1}


def test_a_raising_reward_ends_the_run(user_module):
    pool = RewardPool(config(user_module))
    running = workers()
    with pytest.raises(RewardError) as error:
        pool.score(samples("a", "b", "c", "d", "e", "raise-7", "f"))
    for part in ("rewards_of_a_user.reward", "LookupError: no such thing", "number 5 of 7", "'raise-7'", "'Q?'"):
        assert part in str(error.value)
    assert wait_for_end(running) == []
    with pytest.raises(RewardError, match="no such thing"):  # another thread may ask before this one has said it
        pool.score(samples("a"))
    pool.close()


def test_a_score_that_is_not_finite_is_the_samples_own(user_module):
    """Whoever learns leaves that completion out; the others are scored."""
    with RewardPool(config(user_module)) as pool:
        rewards = [scored.reward for scored in pool.score(samples("a", "infinite", "b"))]
    assert rewards[1] == float("inf") and all(map(isfinite, (rewards[0], rewards[2])))


@pytest.mark.parametrize(("form", "raised"), [("leave", "SystemExit: 3"), ("interrupt", "KeyboardInterrupt")])
def test_a_reward_that_ends_its_process_is_named_like_one_that_raises(form, raised, user_module):
    with RewardPool(config(user_module)) as pool, pytest.raises(RewardError) as error:
        pool.score(samples("a", form))
    assert f"The reward 'rewards_of_a_user.reward' (reward in {user_module.parent}" in str(error.value)
    assert raised in str(error.value) and f"response {form!r}" in str(error.value)


def test_a_long_error_arrives_shortened(user_module):
    with RewardPool(config(user_module, workers=1)) as pool, pytest.raises(RewardError) as error:
        pool.score(samples("long"))
    assert "raised LookupError: one line\nand another\n" in str(error.value)
    assert len(str(error.value)) < 12_000


def test_what_a_reward_does_to_its_process_harms_nobody(user_module, capfd):
    forms = ["print", "fork", "chdir", "names"]
    drawn = samples(*(f"{form}-{i}" for i in range(3) for form in (*forms, "fine")))
    with RewardPool(config(user_module, deadline=30.0, first_deadline=30.0)) as pool:
        before = workers()
        scored = pool.score(drawn)
        assert workers() == before
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.count("written without an end of line") == 3
    expected = [6.0 if s.response.startswith("names") else 2.0 * len(s.response) for s in drawn]
    assert [s.reward for s in scored] == expected
    assert len(scored[3].components) == 201


def test_the_end_of_a_worker_is_seen_though_what_it_forked_lives(user_module):
    others = set(psutil.Process().children(recursive=True))  # such as multiprocessing's, of other tests
    with RewardPool(config(user_module, workers=1, deadline=20.0)) as pool:
        scored = pool.score(samples("daemon", "ab"))
        assert len(set(psutil.Process().children(recursive=True)) - others) == 1
    assert [(s.reward, s.failure) for s in scored] == [(-7.0, "ended the worker (exit code 7)"), (4.0, "")]


def test_the_first_sample_of_a_worker_may_take_longer(user_module):
    options = RewardsConfig(terms={"rewards_of_a_user.slow_start": 1.0}, workers=1, deadline=0.75, first_deadline=60.0)
    with RewardPool(options, rewards_of_a_user().report) as pool:
        pool.judge(samples("a"))  # loads nothing
        assert [s.reward for s in pool.score(samples("a", "b", "c"))] == [1, 1, 1]


def test_workers_that_replace_hanging_ones_wait_no_longer_than_is_known_to_be_needed(user_module):
    with RewardPool(config(user_module, workers=1, first_deadline=60.0)) as pool:
        scored = pool.score(samples("a", "spin-1", "spin-2", "spin-3", "bc"))
    assert [s.failure for s in scored] == ["", *["ran past rewards.deadline=1 s"] * 3, ""]


def test_a_step_without_any_score_ends_the_run(user_module):
    options = RewardsConfig(terms={"rewards_of_a_user.slow_start": 1.0}, deadline=0.5, first_deadline=0.5)
    with RewardPool(options) as pool:
        with pytest.raises(RewardError) as error:
            pool.score([Sample("Q?", response, "A", step=6) for response in "abc"])
        said = str(error.value)
        assert said.startswith("No completion of step 7 got a score: 3 ran past rewards.deadline=0.5 s. Look at")
        assert "rewards.first_deadline" in said and "response 'a'" in said


def test_a_step_is_given_up_when_none_of_its_first_samples_gets_a_score(user_module, monkeypatch):
    monkeypatch.setattr("megatron_rl.rewards.workers.pool.HOPELESS", 4)
    with RewardPool(config(user_module, deadline=30.0)) as pool, pytest.raises(RewardError) as error:
        pool.score(samples(*(f"exit-{i}" for i in range(200))))
    assert "of the first 4, 4 ended the worker (exit code 3)" in str(error.value)
    assert len(user_module.read_text().split()) <= 4 + 2


def rewards_of_a_user():
    import rewards_of_a_user

    return rewards_of_a_user


def test_reports_are_made_in_the_workers_with_the_rewards_and_alone(user_module):
    report = partial(rewards_of_a_user().report, scale=3.0)
    with RewardPool(config(user_module), report) as pool:
        processes = {float(worker.pid) for worker in workers()}
        scored = pool.score(samples("a", "bc", "def"))
        assert [s.reward for s in scored] == [2, 4, 6]
        assert [s.report["correct"] for s in scored] == [3, 6, 9]
        called = user_module.read_text()
        judged = pool.judge(samples("abcd", "e"))
        assert user_module.read_text() == called  # no reward was wanted
    assert [report["correct"] for report in judged] == [12, 3]
    assert {r["process"] for r in [s.report for s in scored] + judged} <= processes
    with RewardPool(config(user_module)) as pool:
        assert pool.score(samples("a"))[0].report is None


def test_reports_have_the_deadline_of_rewards(user_module, capsys):
    with RewardPool(config(user_module), rewards_of_a_user().report) as pool:
        judged = pool.judge(samples("a", "unjudged", "bc"))
        assert [report and report["correct"] for report in judged] == [1, None, 2]
        assert capsys.readouterr().out == (
            "warning: evaluation: 1 of 3 completions have no report (1 ran past rewards.deadline=1 s) "
            "and do not count\n"
        )
        (scored,) = pool.score(samples("a", "unjudged"))[1:]
        assert (scored.reward, scored.report, scored.timed_out) == (-7.0, None, True)
        with pytest.raises(RewardError, match="'right', but not 'correct', which is required"):
            pool.judge(samples("a", "misjudged"))


def test_workers_outlive_the_threads_that_ask_for_scores(user_module):
    """A worker dies with the thread that starts it: one that replaces another must not be the caller's."""
    scored: list[list[Scored]] = []
    with RewardPool(config(user_module, workers=1)) as pool:
        for forms in (("a", "spin", "bc"), ("de", "f"), ("g",)):
            asking = threading.Thread(target=lambda forms=forms: scored.append(pool.score(samples(*forms))))
            asking.start()
            asking.join()
            running = workers()
            assert [s.reward for s in pool.score(samples("hi"))] == [4.0]
            assert workers() == running and len(running) == 1
    assert [[s.reward for s in each] for each in scored] == [[2, -7, 4], [4, 2], [2]]


def test_calls_from_several_threads_are_served_one_after_the_other(user_module):
    scored: dict[int, list[float]] = {}
    with RewardPool(config(user_module, deadline=30.0), rewards_of_a_user().report) as pool:

        def ask(number: int) -> None:
            drawn = samples(*("x" * (number + i) for i in range(20)))
            scored[number] = [s.reward for s in pool.score(drawn)]
            assert [r and r["correct"] for r in pool.judge(drawn)] == [number + i for i in range(20)]
            scored[-number] = scored[number]

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(1, 5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert {n: s for n, s in scored.items() if n > 0} == {n: [2.0 * (n + i) for i in range(20)] for n in range(1, 5)}
    assert len(scored) == 8


def test_workers_that_cannot_start(tmp_path, monkeypatch):
    (tmp_path / "rewards_broken_in_workers.py").write_text(BROKEN_IN_WORKERS)
    monkeypatch.syspath_prepend(tmp_path)
    options = RewardsConfig(terms={"rewards_broken_in_workers.reward": 1.0}, workers=1)
    monkeypatch.setenv("BREAK", "exit")
    with pytest.raises(RewardError, match=r"3 reward workers in a row ended .* the last with exit code 5"):
        RewardPool(options)
    monkeypatch.setenv("BREAK", "raise")
    with pytest.raises(RewardError, match="no data file on this node"):
        RewardPool(options)
    assert wait_for_end(workers()) == []


def test_bad_options_start_nothing():
    with pytest.raises(InputError, match=r"rewards\.terms: 'formt' is unknown"):
        RewardPool(RewardsConfig(terms={"formt": 1.0}, deadline=-1))
    assert workers() == []


def test_an_idle_worker_that_ends_is_replaced_without_blame(user_module):
    with RewardPool(config(user_module, deadline=30.0)) as pool:
        workers()[0].kill()
        scored = pool.score(samples(*"abcdefgh"))
        assert [(s.reward, s.failure) for s in scored] == [(2.0, "")] * 8
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
        "from megatron_rl.rewards.workers.pool import RewardPool\n"
        "from megatron_rl.data.task import Sample\n"
        "pool = RewardPool(RewardsConfig(terms={'rewards_of_a_user.hang': 1.0}, deadline=1000.0))\n"
        "print('ready', flush=True)\n"
        + ("pool.score([Sample('Q?', 'R', 'A')] * 2)\n" if stuck else "sys.stdin.read()\n")
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen([sys.executable, "-c", script], **pipes) as trainer:
        assert trainer.stdout is not None
        try:
            lines = [trainer.stdout.readline() for _ in range(3 if stuck else 1)]
            running = psutil.Process(trainer.pid).children(recursive=True)
        finally:
            trainer.kill()
    assert lines == [b"ready\n", b"stuck\n", b"stuck\n"][: len(lines)]
    assert len(running) == 2
    assert wait_for_end(running) == []
