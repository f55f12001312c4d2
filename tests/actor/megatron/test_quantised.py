"""Weights that layers keep in FP8, with a stand-in for Transformer Engine's tensors: two real ranks."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

RANKS = Path(__file__).parent / "quantised_ranks.py"
STEPS, SAVED = 4, 2
FP8 = dict(data_parallel=2, fp8_weights=True)


@pytest.fixture(scope="module")
def results(model: Path, run_ranks: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list]:
    """Losses and weights of both ranks, by job."""
    out = tmp_path_factory.mktemp("quantised")
    saved = {"folder": str(out / "saved")}
    jobs = [
        {"name": "plain", "actor": dict(data_parallel=2)},
        {"name": "fp8", "actor": FP8, "save": SAVED, **saved},
        {"name": "continued", "actor": FP8, "load": f"step-{SAVED}", **saved},
        {"name": "asleep", "actor": FP8 | {"asleep": True}},
        {"name": "overlap", "actor": FP8 | {"megatron": {"overlap_grad_reduce": True, "overlap_param_gather": True}}},
        {"name": "kl", "actor": FP8, "kl": 0.1},
    ]
    same = {"model": str(model), "dtype": "bfloat16", "load": None, "save": None, "steps": STEPS, "kl": 0.0}
    (out / "jobs.json").write_text(json.dumps([same | {"folder": str(out)} | job for job in jobs]))
    run_ranks(RANKS, 2, out / "jobs.json", out)
    assert len(list(out.glob("by-hand-*"))) == 2
    return {
        job["name"]: [torch.load(out / f"{job['name']}-{rank}.pt", weights_only=False) for rank in range(2)]
        for job in jobs
    }


@pytest.mark.parametrize("other", ["continued", "asleep"])
def test_the_same_numbers(other: str, results: dict[str, list]) -> None:
    for one, two in zip(results["fp8"], results[other], strict=True):
        assert two["losses"] == one["losses"][-len(two["losses"]) :]
        assert all(torch.equal(two["weights"][name], weight) for name, weight in one["weights"].items())


def test_learning_as_without(results: dict[str, list]) -> None:
    """Weights round to three bits behind the first; the losses are near those of bfloat16."""
    for name in ("fp8", "kl"):
        (one, _), (two, _) = results["plain"], results[name]
        assert two["losses"] == pytest.approx(one["losses"], rel=0.03)
        assert two["losses"] != one["losses"]
    for one, two in zip(results["fp8"], results["overlap"], strict=True):
        assert two["losses"] == pytest.approx(one["losses"], rel=1e-3)


def test_the_reference_comes_and_goes(results: dict[str, list]) -> None:
    """Its log-probs stay, the policy's move (its weights are the same afterwards, which the ranks look at)."""
    for rank in results["kl"]:
        first, *rest = rank["reference"][: len(rank["reference"])]
        assert first.isfinite().all() and len(rest) == len(rank["live"]) - 1
        assert torch.equal(rank["reference"][0], rank["live"][0])  # before the first update
        assert not torch.equal(rank["reference"][-1], rank["live"][-1])
