"""Engines that die or hang: restarted, re-armed with the weights that the others serve, and asked again."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import PreTrainedModel

from megatron_rl.errors import SwapError
from megatron_rl.resharding.folders.export import TrainedTensors
from megatron_rl.rollout.protocol import Completion, Request, Sampling
from megatron_rl.rollout.sglang import full_tensors
from megatron_rl.rollout.sglang.pool import SGLangEngines
from megatron_rl.rollout.sglang.replica import Replica
from megatron_rl.system.control import WorkerError
from tests.conftest import PATIENCE
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


def during(engines: SGLangEngines, requests: list[Request], disturb: Callable[[], None]) -> list[list[Completion]]:
    """What is generated; ``disturb`` is run when the first completion has been answered."""
    groups: list[list[Completion]] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            groups.extend(engines.generate(requests, SHORT))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while thread.is_alive() and not engines.progress()[0]:
        time.sleep(1e-3)
    disturb()
    thread.join()
    if errors:
        raise errors[0]
    return groups


def wait_until(true: Callable[[], bool], engines: SGLangEngines) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, engines.health()
        time.sleep(0.01)


def restarts(engines: SGLangEngines) -> list[int]:
    return [state["restarts"] for state in engines.health()["engines"]]


@pytest.fixture(scope="module")
def pair(start: Callable[..., SGLangEngines], trainer: ServedTrainer, model_folder: Models) -> SGLangEngines:
    """Two engines behind the router, whose own looks at their health give up early."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SGLANG_HEALTH_CHECK_TIMEOUT", "2")
        engines = start("qwen3", engines=2, health_seconds=120.0)
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


@pytest.mark.parametrize("way", ["distributed", "tensor"])
def test_two_engines_are_brought_full_tensors_at_once(
    way: str, pair: SGLangEngines, trainer: ServedTrainer, model_folder: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In buckets, copied in other threads than that of the event loop, which looks after both."""
    readers, whole = set(), TrainedTensors.tensor

    def tensor(self: TrainedTensors, name: str) -> torch.Tensor:
        readers.add(threading.current_thread().name)
        return whole(self, name)

    monkeypatch.setattr(TrainedTensors, "tensor", tensor)
    monkeypatch.setattr(full_tensors, "BUCKET", 1 << 14)
    monkeypatch.setattr(pair.options, "swap", way)
    trainer.attach(pair)
    for version in (4, 5):
        trainer.swap(pair, version)
        requests = [Request([i % 90, 5, 9], [i]) for i in range(64)]
        groups = pair.generate(requests, SHORT)
        assert gap(model_folder("qwen3")[1], requests, groups) < EXACT
        assert {c.versions for group in groups for c in group} == {((version, 16),)}
    assert readers and "sglang" not in readers  # the name of the loop's
    assert restarts(pair) == [0, 0]
    monkeypatch.undo()
    trainer.attach(pair)
    trainer.swap(pair, 1)


def test_engines_are_attached_while_one_comes_back(
    pair: SGLangEngines, trainer: ServedTrainer, model_folder: Models
) -> None:
    """One that is being restarted and swapped is waited for: two at once would end each other's session."""
    before = pair.replicas[0].restarted

    def disturb() -> None:
        assert pair.replicas[0].process is not None
        os.kill(pair.replicas[0].process.pid, signal.SIGKILL)
        wait_until(lambda: pair.replicas[0].restarted > before, pair)

    during(pair, [Request([i % 90, i // 90, 9], [i]) for i in range(PROMPTS // 2)], disturb)
    assert not pair.replicas[0].armed  # the other has made the rest before this one was back
    trainer.attach(pair)
    trainer.swap(pair, 1)
    groups = pair.generate(REQUESTS, GREEDY)
    assert gap(model_folder("qwen3")[1], REQUESTS, groups) < EXACT
    assert pair.replicas[0].restarted == before + 1


def test_an_engine_may_be_silent_for_as_long_as_was_said(pair: SGLangEngines, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often SGLang's own look at itself has failed."""
    slow, before = pair.replicas[1], restarts(pair)
    assert slow.process is not None
    failures = slow.process.log.read_text().count("Health check failed")

    def disturb() -> None:
        assert slow.process is not None
        log, process = slow.process.log, scheduler(slow)
        process.send_signal(signal.SIGSTOP)
        wait_until(lambda: slow.gone or log.read_text().count("Health check failed") >= failures + 2, pair)
        process.send_signal(signal.SIGCONT)

    groups = during(pair, [Request([i % 90, i // 90, 9], [i]) for i in range(PROMPTS)], disturb)
    assert [len(group) for group in groups] == [1] * PROMPTS
    assert restarts(pair) == before


def test_one_engine_killed_and_one_hung(
    pair: SGLangEngines, model_folder: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair.options, "health_seconds", 60.0)
    counted = restarts(pair)
    requests = [Request([i % 90, i // 90, 9], [i]) for i in range(PROMPTS)]
    before = [replica.process.pid for replica in pair.replicas if replica.process]

    def disturb() -> None:
        os.kill(before[0], signal.SIGKILL)
        scheduler(pair.replicas[1]).send_signal(signal.SIGSTOP)

    groups = during(pair, requests, disturb)
    assert [len(group) for group in groups] == [1] * PROMPTS
    assert gap(model_folder("qwen3")[1], requests, groups) < EXACT
    assert {c.versions for group in groups for c in group} == {((1, 16),)}
    wait_until(lambda: all(replica.armed for replica in pair.replicas), pair)  # one may have answered everything
    assert restarts(pair) == [count + 1 for count in counted]
    assert all(state["weight_version"] == 1 for state in pair.health()["engines"])
    assert not any(psutil.pid_exists(pid) for pid in before)
    left = [path.name for path in Path("/dev/shm").glob("sgl_shm_*")]
    assert all(psutil.pid_exists(int(name.split("_")[-2])) for name in left)  # a killed server's memory is removed


def test_a_router_that_ends_is_started_again(pair: SGLangEngines, model_folder: Models) -> None:
    requests, before = [Request([i % 90, i // 90, 9], [i]) for i in range(PROMPTS // 4)], restarts(pair)
    assert pair.router is not None and pair.router.server is not None
    groups = during(pair, requests, pair.router._process.kill)
    assert [len(group) for group in groups] == [1] * len(requests)
    assert gap(model_folder("qwen3")[1], requests, groups) < EXACT
    assert restarts(pair) == before


def test_a_swap_brings_back_an_engine_that_died(
    pair: SGLangEngines, trainer: ServedTrainer, model_folder: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not it was to give back its memory first; the router asks it for nothing meanwhile."""
    killed, served = pair.replicas[1], []
    restart, router = killed.restart, pair.router
    assert router is not None

    async def note(why: str) -> None:
        assert router.server is not None
        listed = await router.server.call("GET", "/workers", seconds=PATIENCE)
        served.append(killed.url in {worker["url"] for worker in listed["workers"]})
        await restart(why)

    monkeypatch.setattr(killed, "restart", note)
    before, process = killed.restarted, scheduler(killed)
    process.kill()
    wait_until(lambda: killed.gone, pair)
    pair._do(killed.release())
    trainer.swap(pair, 2)
    groups = pair.generate(REQUESTS, GREEDY)
    assert gap(model_folder("qwen3")[1], REQUESTS, groups) < EXACT
    assert {c.versions for group in groups for c in group} == {((2, 16),)}
    assert killed.restarted == before + 1
    assert served == [False] and router.serves(killed.url)


def test_completions_of_lost_engines_are_made_after_the_next_swap(
    pair: SGLangEngines, trainer: ServedTrainer, model_folder: Models
) -> None:
    """The trainer's weights are changing: engines that come back wait for a swap, so it must not wait for them."""
    pair.release()
    before = restarts(pair)

    def disturb() -> None:
        for replica in pair.replicas:
            assert replica.process is not None
            os.kill(replica.process.pid, signal.SIGKILL)
        wait_until(pair.stalled, pair)
        trainer.swap(pair, 3)

    requests = [Request([i % 90, i // 90, 9], [i]) for i in range(PROMPTS)]
    groups = during(pair, requests, disturb)
    assert [len(group) for group in groups] == [1] * PROMPTS
    assert gap(model_folder("qwen3")[1], requests, groups) < EXACT
    assert {c.versions for group in groups for c in group} - {((2, 16),)} == {((3, 16),)}
    assert restarts(pair) == [count + 1 for count in before]  # once each
    assert not pair.stalled()


def test_a_swap_that_fails_again_and_again_ends(
    pair: SGLangEngines, trainer: ServedTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is, attached anew, restarted: that is not allowed any more."""
    tried, attached = [], []
    broken = pair.replicas[0]
    broken.restarted = broken.options.restarts
    attach = broken.attach

    async def fail(version: int, *arguments: object) -> None:
        tried.append(version)
        raise WorkerError("sglang0 0, pull: RuntimeError: the cat is on the keyboard")

    async def note(*arguments: Any) -> Any:
        attached.append(len(tried))
        return await attach(*arguments)

    monkeypatch.setattr(broken, "bring", fail)
    monkeypatch.setattr(broken, "attach", note)
    with pytest.raises(SwapError, match=r"sglang0 could not be swapped: .*failed again after 3 restarts.*the cat"):
        trainer.swap(pair, 4)
    assert tried == [4, 4, 4] and attached == [2]
    monkeypatch.undo()


def test_an_engine_that_fails_too_often_ends_the_run(pair: SGLangEngines, trainer: ServedTrainer) -> None:
    pair.replicas[0].restarted = 0
    trainer.swap(pair, 5)
    for replica in pair.replicas:
        replica.restarted = replica.options.restarts

    def disturb() -> None:
        for replica in pair.replicas:
            assert replica.process is not None
            os.kill(replica.process.pid, signal.SIGKILL)

    many = [Request([i % 90, i // 90, 9], [i]) for i in range(PROMPTS)]
    with pytest.raises(ConnectionError, match="failed again after 3 restarts"):
        during(pair, many, disturb)
