"""Measured phases beside predicted ones, and the reasons that are given."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from megatron_rl.config import Config
from megatron_rl.resharding.families.architecture import read_architecture
from megatron_rl.settings.foresight.hardware import named
from megatron_rl.settings.foresight.seconds import seconds
from megatron_rl.settings.foresight.work import Workload
from megatron_rl.system import machine
from megatron_rl.training import beside
from megatron_rl.training.beside import Beside
from tests.settings.foresight.shapes import QWEN3_8B, SMALL, of_8b

ROLLOUTS: Any = [SimpleNamespace(length=30, tokens=np.zeros(40)), SimpleNamespace(length=10, tokens=np.zeros(20))]
ROW = {"time/step": 3.0, "time/generate": 1.0, "time/update": 1.5, "time/reference": 0.5, "time/swap": 0.2, "mfu": 0.1}


@pytest.fixture(autouse=True)
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of four cores that does nothing else."""
    monkeypatch.setattr(machine, "cores", lambda: 4)
    monkeypatch.setattr(beside.os, "getloadavg", lambda: (0.5, 0.5, 0.5))


def small() -> Config:
    config = Config()
    config.model.dtype, config.rollout.max_new_tokens, config.data.max_prompt_tokens = "float32", 64, 16
    config.algorithm.kl_coef = 0.01
    return config


def test_medians_without_the_first_step() -> None:
    found = Beside(small(), read_architecture(SMALL), 1e11)
    assert found.told() == []
    said = [found.add({**ROW, "time/step": seconds, "loss": 1.0}, ROLLOUTS) for seconds in (90.0, 3.0, 5.0, 4.0)]
    assert said == [False, False, True, False]  # it is time after three
    took = found.measured()
    assert took == {"generate": 1.0, "reference": 0.5, "update": 1.0, "swap": 0.2, "step": 4.0}
    data = found.data()
    assert (data["steps"], data["measured"], data["mfu"]["measured"]) == (4, took, 0.1)
    assert set(data["predicted"]) == {"generate", "score", "reference", "update", "swap", "step"}


def test_the_prediction_is_of_completions_as_long_as_they_were() -> None:
    config, arch = small(), read_architecture(SMALL)
    found = Beside(config, arch, 1e11)
    found.add(ROW, ROLLOUTS)
    assert found.on is not None
    load = Workload(2, 8, 10.0, 20.0, 64, 80, 1, 1)
    assert found.predicted() == seconds(config, arch, found.on, load, 256.0)


def test_lines() -> None:
    found = Beside(small(), read_architecture(SMALL), 1e11)
    found.add(ROW, ROLLOUTS)
    phases, why = found.told()
    assert phases.startswith("seconds of a step, measured (predicted): generate 1.00 s (")
    assert "reference 0.50 s (" in phases and "swap 0.20 s (0.02 s)" in phases and "score" not in phases
    assert why.startswith("MFU 10 % (predicted ")


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"packing": False}, "packing off"),
        ({}, "micro-batches of 42 tokens"),
        ({"threads": 8}, "8 threads share 4 cores"),
        ({"recompute": "full"}, "recompute=full computes every layer twice"),
        ({"pipeline_parallel": 2}, "a pipeline of 2 stages waits at its ends"),
    ],
)
def test_reasons(changed: dict[str, Any], reason: str) -> None:
    config = small()
    for name, value in changed.items():
        setattr(config.actor, name, value)
    found = Beside(config, read_architecture(SMALL), 1e11)
    found.add({**ROW, "mfu": 0.001}, ROLLOUTS)
    assert reason in found.told()[1]


def test_other_work_on_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside.os, "getloadavg", lambda: (9.0, 9.0, 9.0))
    found = Beside(small(), read_architecture(SMALL), 1e11)
    found.add(ROW, ROLLOUTS)
    assert "other work on the machine: 9.0 processes want 4 cores" in found.told()[1]


def test_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short micro-batches without packing; and a GPU that is not known."""
    monkeypatch.setattr(beside.accelerator, "on_gpu", lambda: True)
    monkeypatch.setattr(beside.torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    config = of_8b()
    config.actor.packing, config.actor.micro_batch_tokens = False, 4096
    with machine.standing_for((80 << 30,)):
        found = Beside(config, read_architecture(QWEN3_8B), 989e12)
        assert found.on == named("h100")
        rollouts: Any = [SimpleNamespace(length=1500, tokens=np.zeros(2000))] * 256
        found.add({"time/step": 400.0, "time/generate": 60.0, "time/update": 340.0, "mfu": 0.09}, rollouts)
        why = found.told()[1]
    assert why.startswith("MFU 9 % (predicted 5") and why.endswith(": packing off; micro-batches of 2k tokens")
    monkeypatch.setattr(beside.torch.cuda, "get_device_name", lambda: "NVIDIA X1")
    unknown = Beside(config, read_architecture(QWEN3_8B), 1e15)
    unknown.add(ROW, rollouts)
    assert unknown.on is None and unknown.told() == []


def test_no_reasons_where_it_is_as_predicted() -> None:
    config = small()
    config.actor.micro_batch_tokens = 4096
    found = Beside(config, read_architecture(SMALL | {"hidden_size": 512, "intermediate_size": 2048}), 1e10)
    rollouts = ROLLOUTS * 500
    found.add(ROW, rollouts)
    step = found.predicted()
    assert step is not None
    found.rows[0] |= {f"time/{name}": value for name, value in step.phases().items()} | {"mfu": step.mfu}
    found.rows[0]["time/update"] = step.learn
    assert found.reasons(step, found.measured()) == []
