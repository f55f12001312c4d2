"""The processes of a pool: threads that ask, how they begin and how they end."""

import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from megatron_rl.errors import InputError
from megatron_rl.rewards.config import RewardsConfig
from megatron_rl.rewards.workers.pool import RewardPool, Scored
from megatron_rl.rewards.workers.terms import RewardError
from tests.conftest import PATIENCE
from tests.rewards.workers.conftest import BROKEN_IN_WORKERS, config, rewards_of_a_user, samples, wait_for_end, workers


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


@pytest.mark.parametrize("attempt", range(4))
def test_a_pool_is_closed_while_another_thread_has_samples_scored(user_module, attempt):
    """That thread is told, and neither ends a worker that the other ends."""
    pool, told = RewardPool(config(user_module, workers=2, deadline=3600.0, first_deadline=3600.0)), []

    def ask() -> None:
        try:
            pool.score(samples("sleep", "sleep-too"))
        except BaseException as error:
            told.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    deadline = time.monotonic() + PATIENCE
    while not user_module.exists() or len(user_module.read_text().split()) < 2:
        assert asking.is_alive() and time.monotonic() < deadline
        time.sleep(0.01)
    pool.close()
    asking.join()
    assert [str(error) for error in told] == ["the reward pool was closed by another thread"]
    assert workers() == []
    with pytest.raises(RuntimeError, match="the reward pool is closed"):
        pool.score(samples("a"))


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
    pool = RewardPool(config(user_module, deadline=PATIENCE))
    running = workers()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def interrupt_at_work() -> None:
        while not user_module.exists() or len(user_module.read_text().split()) < 2:
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGALRM)

    previous = signal.signal(signal.SIGALRM, interrupt)
    thread = threading.Thread(target=interrupt_at_work, daemon=True)
    try:
        with pytest.raises(KeyboardInterrupt):
            thread.start()
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
