"""What options of memory and communication change in a rank, and that numbers stay: real updates of two ranks."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.actor.test_training import full

RANKS = Path(__file__).parents[1] / "training_ranks.py"
DP2, PP2 = dict(data_parallel=2), dict(pipeline_parallel=2)
OVERLAP = {"overlap_grad_reduce": True, "overlap_param_gather": True, "bucket_size": 2000}
Z = {"moe_z_loss_coeff": 0.5}
AUXILIARY = {"moe_router_load_balancing_type": "aux_loss", "moe_aux_loss_coeff": 0.5}
SAME = {  # as the first of the list, to the last bit
    "dp2": ["asleep", "block", "modules", "asleep-continued"],
    "pp2": ["uniform"],
    "moe": ["moe-modules"],
    "bf16": ["bf16-asleep", "bf16-asleep-continued"],
}
STEPS, SAVED = 4, 2


@pytest.fixture(scope="module")
def results(
    model: Path, mixture: Path, run_ranks: Callable[..., None], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[dict]]:
    """Losses and weights of both ranks, by job."""
    out = tmp_path_factory.mktemp("memory")
    bf16 = {"dtype": "bfloat16"}

    def both(name: str, **job: object) -> list[dict]:
        folder = {"folder": str(out / f"{name}-saved")}
        return [
            {"name": name, **job, "save": SAVED, **folder},
            {"name": f"{name}-continued", **job, "load": f"step-{SAVED}", **folder},
        ]

    moe = {"model": str(mixture)}
    jobs = [
        {"name": "dp2", "actor": DP2, "save": SAVED, "folder": str(out / "dp2-saved")},
        {"name": "overlap", "actor": DP2 | {"megatron": OVERLAP}, "follow": True},
        *both("asleep", actor=DP2 | {"asleep": True}),
        {"name": "block", "actor": DP2 | dict(recompute="full", recompute_method="block", recompute_layers=3)},
        {"name": "modules", "actor": DP2 | dict(recompute="selective", recompute_modules=["mlp", "core_attn"])},
        {"name": "decayed", "actor": DP2 | {"megatron": {"apply_wd_to_qk_layernorm": True}}},
        {"name": "pp2", "actor": PP2},
        {"name": "uniform", "actor": PP2 | dict(recompute="full", recompute_layers=2)},
        {"name": "moe", "actor": DP2, **moe},
        {"name": "moe-modules", "actor": DP2 | dict(recompute="selective", recompute_modules=["moe"]), **moe},
        {"name": "moe-z", "actor": DP2 | {"megatron": Z}, **moe},
        {"name": "moe-zp", "actor": PP2 | {"megatron": Z}, **moe},
        {"name": "moe-balanced", "actor": DP2 | {"megatron": AUXILIARY}, **moe},
        {"name": "bf16", "actor": DP2, **bf16},
        *both("bf16-asleep", actor=DP2 | {"asleep": True}, **bf16),
        {"name": "bf16-gradients", "actor": DP2 | {"gradients": "bfloat16"}, **bf16},
    ]
    defaults = {"model": str(model), "dtype": "float32", "load": None, "save": None, "steps": STEPS, "kl": 0.0}
    (out / "jobs.json").write_text(json.dumps([defaults | {"folder": str(out)} | job for job in jobs]))
    run_ranks(RANKS, 2, out / "jobs.json", out)
    return {
        job["name"]: [torch.load(out / f"{job['name']}-{rank}.pt", weights_only=False) for rank in range(2)]
        for job in jobs
    }


@pytest.mark.parametrize(("name", "other"), [(name, other) for name, others in SAME.items() for other in others])
def test_the_same_numbers(name: str, other: str, results: dict[str, list[dict]]) -> None:
    for one, two in zip(results[name], results[other], strict=True):
        assert two["losses"] == one["losses"][-len(two["losses"]) :]
        for parameter, weight in one["weights"].items():
            assert torch.equal(two["weights"][parameter], weight), parameter


def test_a_checkpoint_of_what_sleeps_has_nothing_twice(results: dict[str, list[dict]]) -> None:
    """Tensors that share a block of memory are saved without their neighbours."""
    awake, asleep = results["dp2"][0]["saved"], results["asleep"][0]["saved"]
    assert awake > 0 and asleep == pytest.approx(awake, rel=0.02)


def test_overlapped_exchange(results: dict[str, list[dict]]) -> None:
    """In buckets of 2,000 numbers while layers compute: the gradient's norm alone is summed in another order."""
    for one, two in zip(results["dp2"], results["overlap"], strict=True):
        assert two["losses"] == pytest.approx(one["losses"], abs=1e-6)
        for parameter, weight in one["weights"].items():
            assert (two["weights"][parameter] - weight).abs().max() < 1e-6, parameter


def distance(results: dict[str, list[dict]], one: str, two: str, part: str = "") -> float:
    """The mean difference of weights whose name has ``part``."""
    a, b = results[one][0]["weights"], results[two][0]["weights"]
    return float(torch.cat([(a[n].float() - b[n].float()).abs().flatten() for n in a if part in n]).mean())


def test_gradients_in_bfloat16_are_rounded(results: dict[str, list[dict]]) -> None:
    found = results["bf16-gradients"][0]["losses"]
    assert found != results["bf16"][0]["losses"]
    assert found == pytest.approx(results["bf16"][0]["losses"], rel=0.02)


def test_norms_of_queries_decay(results: dict[str, list[dict]]) -> None:
    """``apply_wd_to_qk_layernorm``: steps of 1e-2 that take a thousandth of the weight with them, in these alone."""
    assert distance(results, "decayed", "dp2", "q_layernorm") > 1e-4
    assert distance(results, "decayed", "dp2", "mlp.linear_fc1") < 1e-3


def test_losses_of_routers_change_their_steps_at_any_sharding(results: dict, mixture: Path) -> None:
    """Data-parallel ranks have half of the tokens each; a pipeline has all of them, in one micro-batch."""
    assert distance(results, "moe-z", "moe", "router") > 1e-3
    assert distance(results, "moe-balanced", "moe", "router") > 1e-3
    one, two = full(results["moe-z"], mixture, DP2), full(results["moe-zp"], mixture, PP2)
    errors = torch.cat([(one[n] - two[n]).abs().flatten() for n in one])
    assert results["moe-z"][0]["losses"] == pytest.approx(results["moe-zp"][0]["losses"], abs=1e-5)
    assert errors.quantile(0.99) < 1e-4
