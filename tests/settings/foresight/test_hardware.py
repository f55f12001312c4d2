"""GPUs by name, and what they cannot compute."""

import pytest

from megatron_rl.errors import InputError
from megatron_rl.settings.foresight import rules
from megatron_rl.settings.foresight.hardware import GPUS, measured_flops, named, of_name, on_cpu, this_machine
from megatron_rl.settings.foresight.rules import check_hardware
from megatron_rl.system import machine
from tests.settings.foresight.shapes import of_8b


@pytest.mark.parametrize(
    ("driver", "name"),
    [
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("NVIDIA A100 80GB PCIe", "a100-80"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA GB200", "gb200"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
    ],
)
def test_names_of_drivers(driver: str, name: str) -> None:
    assert of_name(driver) is GPUS[name]


def test_unknown_names() -> None:
    assert of_name("NVIDIA X1") is None and of_name("Tesla V100-SXM2-32GB") is None
    with pytest.raises(InputError, match=r"--gpu h1000 is not known; it can be a100-40, .*cpu"):
        named("h1000")


def test_spellings() -> None:
    assert named("RTX 4090", 2, 8).total == 16 and named("H100_NVL").name == "H100 NVL" and named("a100").memory > 80e9
    assert named("cpu", 3).nodes == 3 and named("CPU").gpus == 0


def test_rates() -> None:
    h100 = named("h100")
    assert (h100.rate("bfloat16"), h100.rate("float32")) == (989e12, 67e12)
    assert on_cpu(1e11).rate("float32") == 1e11 == on_cpu(1e11).rate("bfloat16")
    assert 1e8 < measured_flops() < 1e13


def test_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    with machine.standing_for((1 << 36, 1 << 35)):
        monkeypatch.setattr(machine, "gpu_name", lambda: "NVIDIA H200")
        found = this_machine(2)
        assert (found.name, found.nodes, found.gpus, found.memory) == ("H200", 2, 2, 1 << 35)
        monkeypatch.setattr(machine, "gpu_name", lambda: "NVIDIA X1")
        assert (this_machine().name, this_machine().rate("bfloat16")) == ("NVIDIA X1", 0)
    with machine.standing_for(()):
        assert this_machine().gpus == 0


@pytest.mark.parametrize(
    ("fp8", "refused"),
    [
        ("none", set()),
        ("delayed", {"a100-40", "a100-80"}),
        ("tensorwise", {"a100-40", "a100-80"}),
        ("blockwise", {"a100-40", "a100-80", "l40s", "l4", "rtx4090"}),
        ("mxfp8", set(GPUS) - {"b200", "gb200"}),
    ],
)
def test_precisions(fp8: str, refused: set[str]) -> None:
    config = of_8b()
    config.actor.fp8 = fp8
    with machine.standing_for((1 << 36,)):
        assert {name for name in GPUS if check_hardware(config, named(name))} == refused


def test_blockwise_products_need_a_cuda_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    config = of_8b()
    config.actor.fp8 = "blockwise"
    for built, problems in (("2.11.0+cu128", 1), ("2.11.0+cu129", 0), ("2.11.0+cu130", 0), ("2.11.0", 0)):
        monkeypatch.setattr(machine, "installed", lambda package, built=built: built)
        assert len(check_hardware(config, named("h100"))) == problems
    monkeypatch.setattr(machine, "installed", lambda package: "2.11.0+cu128")
    with machine.standing_for((1 << 36,)):  # whose CUDA is not known
        assert rules.check_hardware(config, named("h100")) == []


def test_generating_in_fp8() -> None:
    config = of_8b()
    config.rollout.sglang.fp8 = True
    (said,) = check_hardware(config, named("a100"))
    assert "rollout.sglang.fp8=true" in said and check_hardware(config, named("l40s")) == []
