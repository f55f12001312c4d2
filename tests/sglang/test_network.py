"""Engines that the trainer's ranks send to, as they do to engines on other machines; here the machine is one."""

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from megatron_rl.resharding.nearest import readers
from megatron_rl.resharding.plan import make_plan
from megatron_rl.resharding.swap import SwapSource
from megatron_rl.resharding.transports.choose import offer
from megatron_rl.rollout.protocol import Request
from megatron_rl.rollout.sglang.pool import SGLangEngines
from megatron_rl.swap.sender import Sender
from megatron_rl.system import machine
from megatron_rl.system.channel import KEY
from tests.conftest import PATIENCE, free_port
from tests.sglang.conftest import ServedTrainer
from tests.sglang.test_engine import EXACT, GREEDY, REQUESTS, changed, gap
from tests.sglang.test_recovery import during, scheduler, wait_until
from tests.sglang.test_runs import COMMAND, ENVIRONMENT, launch, train

Models = Callable[[str], tuple[Path, PreTrainedModel]]


def attach(trainer: ServedTrainer, engine: SGLangEngines) -> None:
    """As ranks do (``actor.swap``), each in a thread of this process."""
    reach = engine.reach([machine.place()] * len(trainer.ranks))
    assert reach.transport == "gloo" and reach.control.startswith("127.0.0.1:")
    for session, near in reach.sessions:
        for rank in readers(trainer.layout, near):
            parameters = trainer.ranks[rank]
            Sender(trainer.layout, rank, parameters, torch.float32).start(reach.control, session)
    memories = [offer(reach, parameters) for parameters in trainer.ranks]
    attached = engine.attach(SwapSource(trainer.hf_config, trainer.sizes, False, False, memories))
    trainer.plan = make_plan(trainer.layout, attached.layout)
    assert trainer.plan.hash == attached.plan_hash


def test_an_engine_is_filled_over_the_network_and_filled_again_after_a_restart(
    start: Callable[..., SGLangEngines], trainer: ServedTrainer, model_folder: Models
) -> None:
    engine, (_, model) = start("qwen3", transport="gloo", host="127.0.0.1", health_seconds=120.0), model_folder("qwen3")
    attach(trainer, engine)
    for version, weights in ((1, changed(model, 1)), (2, model)):
        trainer.load(weights)
        trainer.swap(engine, version)
        groups = engine.generate(REQUESTS, GREEDY)
        assert gap(weights, REQUESTS, groups) < EXACT
        assert {c.versions for group in groups for c in group} == {((version, 16),)}
    (replica,) = engine.replicas

    requests = [Request([i % 90, 5, 9], [i]) for i in range(200)]  # lost in mid-generation: the ranks send again
    groups = during(engine, requests, lambda: scheduler(replica).kill())
    assert gap(model, requests, groups) < EXACT
    assert {c.versions for group in groups for c in group} == {((2, 16),)}
    wait_until(lambda: replica.armed, engine)
    assert replica.restarted == 1

    scheduler(replica).kill()  # lost between swaps
    trainer.swap(engine, 3)
    assert gap(model, REQUESTS, engine.generate(REQUESTS, GREEDY)) < EXACT
    assert replica.restarted == 2


def refused(folder: Path, *overrides: str) -> str:
    """What is said of a run that cannot use its engine."""
    done = launch(folder, "refused", "run.resume=never", *overrides)
    assert done.returncode == 2, (done.returncode, done.stderr[-2000:])
    return done.stderr


def test_a_run_takes_an_engine_that_was_started_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port, key = free_port(), "5f" * 16
    engine = subprocess.Popen(
        [*COMMAND, "engine", "quickstart", "rollout.max_running=32", "--port", str(port)],
        env=ENVIRONMENT | {KEY: key},
        stdout=subprocess.PIPE,
        text=True,
    )
    urls = f"rollout.sglang.urls=http://127.0.0.1:{port}"
    try:
        assert engine.stdout is not None
        said = [engine.stdout.readline() for _ in range(3)]
        assert said[0].startswith("Starting SGLang") and said[2].endswith(f"rollout.engine=sglang {urls}\n")
        monkeypatch.setitem(ENVIRONMENT, KEY, key)
        over = ["rollout.sglang.transport=gloo", "rollout.sglang.host=127.0.0.1"]
        through = ["rollout.sglang.transport=files"]
        for name, how in (("network", over), ("memory", []), ("files", through)):  # it is attached anew by each
            _, steps = train(tmp_path, name, urls, *how)
            assert len(steps) == 6
            assert all(0 < row["max_logprob_gap"] < EXACT for row in steps)
        assert list((tmp_path / "files" / "swap").iterdir()) == []  # removed when the run ends
        for wrong, said in (
            (["rollout.sglang.tensor_parallel=2"], "has 1 workers: set rollout.sglang.tensor_parallel=1; it is 2."),
            (
                ["model.architecture.intermediate_size=128"],
                "another model than the one that is trained: mlp_hidden 256, not 128",
            ),
        ):
            assert said in refused(tmp_path, urls, *wrong)
        monkeypatch.setitem(ENVIRONMENT, KEY, key[2:])
        assert "has another key" in refused(tmp_path, urls)
        monkeypatch.delitem(ENVIRONMENT, KEY)
        without = subprocess.run(
            [*COMMAND, "check", "quickstart", "rollout.engine=sglang", urls],
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
        )
        assert without.returncode == 2 and f"{KEY} must hold the run's key" in without.stdout
    finally:
        engine.send_signal(signal.SIGINT)
        assert engine.wait(PATIENCE) == 128 + signal.SIGINT
