"""Engines that die or hang: restarted, re-armed with the weights that the others serve, and asked again."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from transformers import PreTrainedModel

from megatron_rl.rollout.protocol import Completion, Request, Sampling
from megatron_rl.rollout.sglang.engine import SGLangEngines
from megatron_rl.rollout.sglang.replica import Replica
from tests.sglang.conftest import ServedTrainer
from tests.sglang.test_engine import EXACT, GREEDY, REQUESTS, gap

Models = Callable[[str], tuple[Path, PreTrainedModel]]
PROMPTS = 1000
SHORT = Sampling(16, temperature=0.0, ignore_stop=True)


def scheduler(replica: Replica) -> psutil.Process:
    """The process of a server that holds the model."""
    assert replica.process is not None
    children = psutil.Process(replica.process.pid).children(recursive=True)
    return next(child for child in children if "scheduler" in child.name() or "scheduler" in " ".join(child.cmdline()))


def during(generation: Callable[[], list[list[Completion]]], disturb: Callable[[], None]) -> list[list[Completion]]:
    """Run ``disturb`` half a second after ``generation`` has begun."""
    groups: list[list[Completion]] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            groups.extend(generation())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(0.5)
    disturb()
    thread.join()
    if errors:
        raise errors[0]
    return groups


def wait_for_all(engines: SGLangEngines) -> None:
    deadline = time.monotonic() + 200
    while not all(replica.armed for replica in engines.replicas):
        assert time.monotonic() < deadline, engines.health()
        time.sleep(0.1)


@pytest.fixture(scope="module")
def pair(start: Callable[..., SGLangEngines], trainer: ServedTrainer, model_folder: Models) -> SGLangEngines:
    """Two engines behind the router."""
    engines = start("qwen3", engines=2, health_seconds=10.0)
    trainer.load(model_folder("qwen3")[1])
    trainer.attach(engines)
    trainer.swap(engines, 1)
    return engines


def test_both_engines_answer_through_the_router(pair: SGLangEngines, model_folder: Models) -> None:
    requests = [Request([i % 90, 5, 9], [i]) for i in range(64)]
    groups = pair.generate(requests, SHORT)
    assert gap(model_folder("qwen3")[1], requests, groups) < EXACT
    for replica in pair.replicas:
        assert replica.process is not None and "Prefill batch" in replica.process.log.read_text()


def test_one_engine_killed_and_one_hung(pair: SGLangEngines, model_folder: Models) -> None:
    requests = [Request([i % 90, i // 90, 9], [i]) for i in range(PROMPTS)]
    before = [replica.process.pid for replica in pair.replicas if replica.process]

    def disturb() -> None:
        os.kill(before[0], signal.SIGKILL)
        scheduler(pair.replicas[1]).send_signal(signal.SIGSTOP)

    groups = during(lambda: pair.generate(requests, SHORT), disturb)
    assert [len(group) for group in groups] == [1] * PROMPTS
    assert gap(model_folder("qwen3")[1], requests, groups) < EXACT
    assert {c.versions for group in groups for c in group} == {((1, 16),)}
    wait_for_all(pair)  # the first that is back may have answered everything
    assert [state["restarts"] for state in pair.health()["engines"]] == [1, 1]
    assert all(state["weight_version"] == 1 for state in pair.health()["engines"])
    assert not any(psutil.pid_exists(pid) for pid in before)
    left = [path.name for path in Path("/dev/shm").glob("sgl_shm_*")]
    assert all(psutil.pid_exists(int(name.split("_")[-2])) for name in left)  # a killed server's memory is removed


def test_a_swap_brings_back_an_engine_that_died(
    pair: SGLangEngines, trainer: ServedTrainer, model_folder: Models
) -> None:
    killed = pair.replicas[1]
    scheduler(killed).kill()
    trainer.swap(pair, 2)
    groups = pair.generate(REQUESTS, GREEDY)
    assert gap(model_folder("qwen3")[1], REQUESTS, groups) < EXACT
    assert {c.versions for group in groups for c in group} == {((2, 16),)}
    assert killed.restarted == 2


def test_an_engine_that_fails_too_often_ends_the_run(pair: SGLangEngines) -> None:
    for replica in pair.replicas:
        replica.restarted = replica.options.restarts

    def disturb() -> None:
        for replica in pair.replicas:
            assert replica.process is not None
            os.kill(replica.process.pid, signal.SIGKILL)

    many = [Request([i % 90, i // 90, 9], [i]) for i in range(PROMPTS)]
    with pytest.raises(ConnectionError, match="failed again after 3 restarts"):
        during(lambda: pair.generate(many, SHORT), disturb)
