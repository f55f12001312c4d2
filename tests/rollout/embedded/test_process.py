"""The embedded engine as a real process, with a trainer whose ranks live in this one."""

import asyncio
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_rl.errors import InputError, SwapError
from megatron_rl.resharding.layout import ParallelSizes
from megatron_rl.rollout.config import RolloutConfig
from megatron_rl.rollout.embedded.client import (
    EmbeddedEngine,
    EngineError,
    EnginePool,
    engine_command,
    engine_environment,
)
from megatron_rl.rollout.embedded.generate import generate
from megatron_rl.rollout.protocol import Request, Sampling
from megatron_rl.system.channel import key_from_environment, parse_address
from tests.conftest import PATIENCE, ROOT, free_port

KEY = secrets.token_bytes(16)
CONFIG = RolloutConfig(max_running=24, threads=1)
REQUESTS = [Request([7, 8, 9], [1, 2, 3]), Request([4] * 11, [4, 5, 6]), Request([1, 2], [7, 8, 9])]
SAMPLING = Sampling(12, stop_tokens=(3,))


def environment() -> dict[str, str]:
    return os.environ | engine_environment(CONFIG, KEY) | {"PYTHONPATH": str(ROOT)}


# Starts an engine as its child, says so, and waits to be killed.
PARENT = """
import subprocess, sys, time
process = subprocess.Popen(sys.argv[1:])
print(process.pid, flush=True)
time.sleep(600)
"""

LINGERS_BRIEFLY = """
from megatron_rl.rollout.embedded import process
process.LINGER = 0.1
process.run(process.main)
"""


def gone(pid: int, seconds: float = PATIENCE) -> bool:
    """Whether a process ends in time (a zombie has ended)."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


@pytest.fixture(scope="module")
def folder(models, tmp_path_factory) -> Path:
    """What an engine needs of a model folder."""
    path = tmp_path_factory.mktemp("model")
    models["qwen3"][0].config.save_pretrained(path)
    return path


@dataclass(frozen=True)
class Started:
    address: str
    pid: int
    process: subprocess.Popen  # the engine, or its parent


@pytest.fixture(scope="module")
def started(folder, tmp_path_factory) -> Iterator[tuple[Started, Started]]:
    """Two engines that start at the same time: one has another process for a parent, one listens on TCP."""
    socket_path, port = str(tmp_path_factory.mktemp("run") / "engine"), f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-c", PARENT, *engine_command(CONFIG, folder, socket_path, "float32")]
    parent = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True)
    child = subprocess.Popen(engine_command(CONFIG, folder, port, "float32"), env=environment())
    assert parent.stdout is not None
    yield Started(socket_path, int(parent.stdout.readline()), parent), Started(port, child.pid, child)
    for process in (parent, child):
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def engines(started) -> list[EmbeddedEngine]:
    return [EmbeddedEngine(engine.address, KEY) for engine in started]


def swap(engine, trainer, version: int, hashes: np.ndarray | None = None):
    engine.begin_swap(version)
    return engine.finish_swap(version, trainer.hashes() if hashes is None else hashes)


def test_a_taken_address_and_a_wrong_key(started, folder):
    address = started[0].address
    while not Path(address).is_socket():
        time.sleep(0.05)
    again = subprocess.run(
        engine_command(CONFIG, folder, address, "float32"),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert again.returncode == 2
    assert again.stderr.startswith("error: ") and address in again.stderr
    with pytest.raises(ConnectionError, match="another key"):
        EmbeddedEngine(address, b"wrong")


def test_the_life_of_an_engine(started, engines, models, trainer):
    """Poisoned, swapped, serving, poisoned by a failed swap, healed, attached anew."""
    engine, model = engines[0], models["qwen3"][0]
    assert engine.health()["pid"] == started[0].pid
    assert engine.health()["weight_version"] == -1
    with pytest.raises(SwapError, match="no complete swap yet"):
        engine.generate(REQUESTS, SAMPLING)
    with pytest.raises(SwapError, match="not attached"):
        engine.begin_swap(0)

    ranks = trainer(model, ParallelSizes(tensor=2, pipeline=2))
    assert engine.attach(ranks.source()).plan_hash == ranks.plan.hash
    with pytest.raises(SwapError, match="swap 0 was not begun"):
        engine.finish_swap(0, ranks.hashes())
    report = swap(engine, ranks, 0)
    elements = sum(parameter.numel() for parameter in model.parameters())
    assert (report.version, report.plan_hash, report.bytes) == (0, ranks.plan.hash, 4 * elements)
    assert engine.generate(REQUESTS, SAMPLING) == generate(model, REQUESTS, SAMPLING, version=0)

    with torch.no_grad():  # the policy moves on, as after an update
        for parameters in ranks.ranks:
            for parameter in parameters.values():
                parameter.mul_(1.01)
    engine.begin_swap(1)
    with pytest.raises(SwapError, match="swap 1 is not finished"):
        engine.generate(REQUESTS, SAMPLING)
    with pytest.raises(SwapError, match="before the last one was finished"):
        engine.begin_swap(2)
    hashes = ranks.hashes()
    broken = len(hashes) // 2
    hashes[broken] ^= np.uint64(1)
    with pytest.raises(SwapError, match=ranks.plan.copies[broken].tensor.replace(".", r"\.")):
        engine.finish_swap(1, hashes)
    assert engine.health()["weight_version"] == -1
    with pytest.raises(SwapError, match="swap 1 failed"):
        engine.generate(REQUESTS, SAMPLING)

    swap(engine, ranks, 2)
    moved = engine.generate(REQUESTS, SAMPLING)
    assert {completion.weight_version for group in moved for completion in group} == {2}
    assert [[c.tokens for c in group] for group in moved] != [
        [c.tokens for c in group] for group in generate(model, REQUESTS, SAMPLING)
    ]

    single = trainer(model, ParallelSizes())
    assert engine.attach(single.source()).plan_hash != ranks.plan.hash
    with pytest.raises(SwapError, match="no complete swap since"):
        engine.generate(REQUESTS, SAMPLING)
    swap(engine, single, 3)
    assert engine.generate(REQUESTS, SAMPLING) == generate(model, REQUESTS, SAMPLING, version=3)


def test_a_trainer_that_writes_during_the_swap_is_caught(engines, models, trainer):
    engine, ranks = engines[0], trainer(models["qwen3"][0], ParallelSizes(tensor=2))
    engine.attach(ranks.source())
    expected = ranks.hashes()
    name = next(name for name in ranks.ranks[1] if "linear_fc2" in name)
    ranks.ranks[1][name].view(-1)[5] += 1e-3
    with pytest.raises(SwapError, match=r"down_proj.*trainer rank 1"):
        swap(engine, ranks, 1, expected)
    swap(engine, ranks, 2)


def test_what_an_engine_refuses_is_told(engines, models, trainer):
    engine = engines[0]
    swap_ready = trainer(models["qwen3"][0], ParallelSizes())
    engine.attach(swap_ready.source())
    swap(engine, swap_ready, 5)
    with pytest.raises(InputError, match="prompt 0 of the batch"):
        engine.generate([Request([101], [0])], SAMPLING)
    with pytest.raises(EngineError, match="AttributeError"):
        engine.attach("nonsense")
    with pytest.raises(EngineError, match="no method __init__"):
        engine._call("__init__")
    assert engine.health()["pid"] > 0  # and it still serves


def test_a_pool_is_one_engine(started, engines, models, trainer):
    model = models["qwen3"][0]
    pool, ranks = EnginePool(engines), trainer(model, ParallelSizes(tensor=2))
    assert pool.attach(ranks.source()).plan_hash == ranks.plan.hash
    report = swap(pool, ranks, 4)
    assert report.bytes == 8 * sum(parameter.numel() for parameter in model.parameters())
    expected = generate(model, REQUESTS, SAMPLING, version=4)
    for ours, theirs in zip(pool.generate(REQUESTS, SAMPLING), expected, strict=True):
        assert [c.tokens for c in ours] == [c.tokens for c in theirs]
    assert pool.generate([], SAMPLING) == []
    assert [health["pid"] for health in pool.health()["engines"]] == [engine.pid for engine in started]
    hashes = ranks.hashes()
    hashes[0] ^= np.uint64(1)
    with pytest.raises(SwapError):
        swap(pool, ranks, 5, hashes)
    assert [health["weight_version"] for health in pool.health()["engines"]] == [-1, -1]
    swap(pool, ranks, 6)


def test_two_rounds_at_once_find_an_engine_lost(engines, models, trainer, monkeypatch):
    """On another machine; each asks the other engine for what that one owed it."""
    model, both = models["qwen3"][0], threading.Barrier(2, timeout=PATIENCE)
    pool, ranks = EnginePool(engines), trainer(model, ParallelSizes())
    pool.attach(ranks.source())
    swap(pool, ranks, 4)
    lost = engines[1]

    def lose(requests, sampling):
        both.wait()
        raise ConnectionError("the rollout engine is lost")

    monkeypatch.setattr(lost, "generate", lose)
    monkeypatch.setattr(lost, "far", True)
    monkeypatch.setattr(pool, "_threads", ThreadPoolExecutor(4))  # both rounds ask it at the same time
    with ThreadPoolExecutor(2) as rounds:
        asked = [rounds.submit(pool.generate, REQUESTS, SAMPLING) for _ in range(2)]
    expected = [[c.tokens for c in group] for group in generate(model, REQUESTS, SAMPLING, version=4)]
    for each in asked:
        assert [[c.tokens for c in group] for group in each.result()] == expected
    assert pool.engines == [engines[0]]


def test_requests_awaited_one_by_one_are_completed_as_one_batch(engines, models, trainer):
    """Bit for bit what ``generate`` answers: by one engine, and by two that share them."""
    ranks = trainer(models["qwen3"][0], ParallelSizes())
    requests = [Request([1 + i] * (1 + 3 * i % 7), [10 * i, 10 * i + 1, 10 * i + 2]) for i in range(13)]

    async def complete(engine):
        return await asyncio.gather(*(engine.complete(request, SAMPLING) for request in requests))

    for engine in (engines[0], EnginePool(engines)):
        engine.attach(ranks.source())
        swap(engine, ranks, 7)
        assert asyncio.run(complete(engine)) == engine.generate(requests, SAMPLING)
    engines[0].begin_swap(9)
    with pytest.raises(SwapError, match="swap 9 is not finished"):
        asyncio.run(complete(engine))
    engines[0].finish_swap(9, ranks.hashes())


def test_how_far_a_generation_is(engines, models, trainer, monkeypatch):
    """Each engine's words are noted as they come, and the first ones are held until both are there."""
    words, seen = {engine: [] for engine in engines}, threading.Event()

    def note(engine, word):
        vars(engine)["_progress"] = word
        words[engine].append(word)
        if word != (0, 0):
            seen.wait(PATIENCE)

    ranks = trainer(models["qwen3"][0], ParallelSizes())
    pool = EnginePool(engines)
    pool.attach(ranks.source())
    swap(pool, ranks, 1)
    requests = [Request([1, 2, 3], list(range(40))) for _ in range(2)]
    assert pool.progress() == (0, 0)
    monkeypatch.setattr(
        EmbeddedEngine, "_progress", property(lambda engine: vars(engine)["_progress"], note), raising=False
    )
    generating = threading.Thread(target=pool.generate, args=(requests, Sampling(100, stop_tokens=(3,))))
    generating.start()
    while pool.progress() != (0, 80):
        assert generating.is_alive(), words
        time.sleep(0.01)
    seen.set()
    generating.join()
    for first, *more in words.values():
        assert first == (0, 40) and all(0 <= done <= asked == 40 for done, asked in more[:-1])
        assert more[-1] == (0, 0)
    assert pool.progress() == (0, 0)


def unfiled(pid: int) -> int:
    """Bytes that a process has in memory, but for pages of files, which come and go with what the machine has free."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return sum(int(status[name].split()[0]) * 1024 for name in ("RssAnon", "RssShmem"))


def test_memory_stays_flat(started, engines, models, trainer):
    engine, ranks = engines[0], trainer(models["qwen3"][0], ParallelSizes(tensor=2))
    engine.attach(ranks.source())
    batch = [Request([1 + index] * (1 + 5 * index), list(range(4))) for index in range(8)]
    resident = []
    for step in range(50):
        swap(engine, ranks, step)
        engine.generate(batch, Sampling(6))
        assert engine.health()["resident_bytes"] > 0
        resident.append(unfiled(started[0].pid))
    assert max(resident[20:]) - resident[19] < 4e6


def test_an_engine_dies_with_its_parent_and_its_client_is_told(started, engines):
    assert engines[0].health()["pid"] == started[0].pid
    started[0].process.kill()
    assert gone(started[0].pid)
    with pytest.raises(ConnectionError, match="ended during health"):
        engines[0].health()


def test_stop_ends_the_process_and_an_interrupt_does_not(started, engines):
    started[1].process.send_signal(signal.SIGINT)
    assert engines[1].health()["pid"] == started[1].pid
    engines[1].stop()
    assert started[1].process.wait(PATIENCE) == 0
    engines[1].stop()  # nothing is left to do


def test_an_engine_ends_when_its_client_is_gone(folder, tmp_path):
    address = str(tmp_path / "engine")
    left_over = socket.socket(socket.AF_UNIX)
    left_over.bind(address)  # by an engine that was killed: the next one takes it over
    left_over.close()
    command = engine_command(CONFIG, folder, address, "float32")
    process = subprocess.Popen([command[0], "-c", LINGERS_BRIEFLY, *command[3:]], env=environment())
    try:
        engine = EmbeddedEngine(address, KEY)
        assert engine.health()["pid"] == process.pid
        del engine
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()


def test_addresses_and_keys(monkeypatch, tmp_path):
    assert parse_address("127.0.0.1:80") == ("127.0.0.1", 80)
    assert parse_address("/run/a:b/engine") == "/run/a:b/engine"
    assert parse_address("engine.sock") == "engine.sock"
    for text in ("127.0.0.1:", "localhost:70000", "host:x", "/" + "a" * 107):
        with pytest.raises(InputError):
            parse_address(text)
    for value in ("", "xyz"):
        monkeypatch.setenv("MEGATRON_RL_KEY", value)
        with pytest.raises(InputError, match="MEGATRON_RL_KEY"):
            key_from_environment()
    with pytest.raises(ConnectionError, match="no rollout engine listens"):
        EmbeddedEngine(str(tmp_path / "nobody"), KEY, seconds=0.1)
