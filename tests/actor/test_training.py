"""Optimiser steps of the real sharded actor: against torch's AdamW, and saved and continued at any sharding."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_rl.actor.checkpoint_folder import FILES, damage
from megatron_rl.actor.config import ActorConfig
from megatron_rl.resharding.layouts.megatron import megatron_layout
from megatron_rl.resharding.layouts.transformers import transformers_layout
from tests.actor.training_ranks import SETTINGS, sequences

RANKS = Path(__file__).parent / "training_ranks.py"
TP2 = dict(tensor_parallel=2)
OTHERS = {
    "dp2": dict(data_parallel=2),
    "pp2": dict(pipeline_parallel=2),
    "uneven": dict(pipeline_parallel=2, first_stage=3),
}
CUT_EXPERTS = dict(data_parallel=2, expert_tensor_parallel=2)
PARTED_EXPERTS = dict(data_parallel=2, expert_parallel=2)
STEPS, SAVED = 4, 2


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the checkpoints are, in fp32 and bf16."""
    return tmp_path_factory.mktemp("trained")


@pytest.fixture(scope="module")
def results(model: Path, mixture: Path, run_ranks: Callable[..., None], out: Path) -> dict[str, list[dict]]:
    """Losses and weights of both ranks after STEPS steps, by job."""
    defaults = {"model": str(model), "dtype": "float32", "load": None, "save": None, "steps": STEPS, "kl": 0.0}
    saved = {"load": f"step-{SAVED}", "folder": str(out / "fp32")}
    jobs = [
        {"name": "whole", "actor": TP2, "save": SAVED, "folder": str(out / "fp32")},
        {"name": "continued", "actor": TP2, **saved},
        *({"name": name, "actor": actor, **saved} for name, actor in OTHERS.items()),
        {"name": "bf16", "actor": TP2, "dtype": "bfloat16", "save": SAVED, "folder": str(out / "bf16")},
        {"name": "bf16-continued", "actor": TP2, "dtype": "bfloat16", "load": "step-2", "folder": str(out / "bf16")},
        {"name": "moe", "actor": CUT_EXPERTS, "save": SAVED, "folder": str(out / "moe"), "model": str(mixture)},
        *(
            {"name": name, "actor": actor, "load": "step-2", "folder": str(out / "moe"), "model": str(mixture)}
            for name, actor in (("moe-continued", CUT_EXPERTS), ("moe-parted", PARTED_EXPERTS))
        ),
        {"name": "kl", "actor": OTHERS["dp2"], "kl": 0.1, "folder": str(out)},
        {"name": "broken", "actor": OTHERS["dp2"], "broken": STEPS - 1, **saved},
    ]
    (out / "jobs.json").write_text(json.dumps([defaults | job for job in jobs]))
    run_ranks(RANKS, 2, out / "jobs.json", out)
    names = [job["name"] for job in jobs]
    return {n: [torch.load(out / f"{n}-{rank}.pt", weights_only=False) for rank in range(2)] for n in names}


def full(results: list[dict], model: Path, actor: dict) -> dict[str, torch.Tensor]:
    """Every rank's weights put together as transformers' parameters."""
    hf_config = json.loads((model / "config.json").read_text())
    sizes = ActorConfig(**actor).sizes()
    engine = transformers_layout(hf_config).ranks[0]
    whole = {name: torch.full(shape, torch.nan) for name, shape in engine.locals.items()}
    there = {s.tensor: s for s in engine.segments}
    for result, shard in zip(results, megatron_layout(hf_config, sizes).ranks, strict=True):
        for s in shard.segments:
            t = there[s.tensor]
            offset = t.offset + sum(a * b for a, b in zip(s.start, t.strides, strict=True))
            local = result["weights"][s.local].flatten().as_strided(s.shape, s.strides, s.offset)
            whole[t.local].flatten().as_strided(s.shape, t.strides, offset).copy_(local)
    return whole


def test_steps_equal_torch_adamw(results: dict[str, list[dict]], model: Path) -> None:
    """Clipping by the global norm, weight decay on all but norms, bias correction: as torch has it in fp64."""
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64).train()
    parameters = dict(reference.named_parameters())
    groups = [
        {"params": [p for p in parameters.values() if p.dim() > 1], "weight_decay": SETTINGS.weight_decay},
        {"params": [p for p in parameters.values() if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(SETTINGS.beta1, SETTINGS.beta2), eps=SETTINGS.eps)
    for step in range(STEPS):
        loss = torch.zeros((), dtype=torch.float64)
        for s in sequences(step):
            tokens = torch.from_numpy(s.tokens)[None]
            log_p = reference(tokens).logits[0, :-1].log_softmax(-1).gather(1, tokens[0, 1:, None]).squeeze(1)
            loss = loss - (torch.from_numpy(s.columns["weight"])[1:] * log_p).sum()
        assert results["whole"][0]["losses"][step] == pytest.approx(loss.item(), abs=2e-6)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(reference.parameters(), SETTINGS.clip_grad)
        optimizer.step()
    trained = full(results["whole"], model, TP2)
    # Adam's first steps are signs: where a gradient is about 0, rounding decides the direction
    errors = torch.cat([(trained[n].double() - p.data).abs().flatten() for n, p in parameters.items()])
    assert errors.quantile(0.999) < 1e-5
    assert errors.mean() < 1e-6


@pytest.mark.parametrize("name", ["whole", "bf16", "moe"])
def test_a_saved_run_continues_bit_identically(name: str, results: dict[str, list[dict]]) -> None:
    """bfloat16 weights come from fp32 masters, which the checkpoint keeps too."""
    continued = results["continued" if name == "whole" else f"{name}-continued"]
    for rank, whole in enumerate(results[name]):
        assert continued[rank]["losses"] == whole["losses"][SAVED:]
        for parameter, weight in whole["weights"].items():
            assert weight.dtype == (torch.bfloat16 if name == "bf16" else torch.float32)
            assert torch.equal(continued[rank]["weights"][parameter], weight), parameter


@pytest.mark.parametrize("name", [*OTHERS, "moe-parted"])
def test_a_saved_run_continues_at_another_sharding(name: str, results: dict, model: Path, mixture: Path) -> None:
    saved, there, folder, here = "whole", TP2, model, OTHERS.get(name, {})
    if name == "moe-parted":
        saved, there, folder, here = "moe", CUT_EXPERTS, mixture, PARTED_EXPERTS
    assert results[name][0]["losses"] == pytest.approx(results[saved][0]["losses"][SAVED:], abs=1e-6)
    continued, whole = full(results[name], folder, here), full(results[saved], folder, there)
    errors = torch.cat([(continued[n] - whole[n]).abs().flatten() for n in whole])
    assert errors.quantile(0.999) < 1e-6 and errors.mean() < 1e-7


def test_the_reference_stays_where_it_was_frozen(results: dict[str, list[dict]]) -> None:
    for rank in results["kl"]:
        first, *later = zip(rank["reference"], rank["live"], strict=True)
        assert torch.equal(*first)  # before the first update the policy is the reference
        assert all((reference - live).abs().max() > 0.01 for reference, live in later)


def test_an_update_that_is_not_finite_leaves_no_trace(results: dict[str, list[dict]]) -> None:
    """One rank's loss is NaN: no rank makes the step, and those after it are as if it had not been tried."""
    for broken, whole in zip(results["broken"], results["dp2"], strict=True):
        assert broken["losses"] == whole["losses"]
        for parameter, weight in whole["weights"].items():
            assert torch.equal(broken["weights"][parameter], weight), parameter


@pytest.mark.usefixtures("results")
def test_a_checkpoint_is_whole_by_its_list_and_by_its_index(out: Path, tmp_path: Path) -> None:
    """Those of earlier versions have no list: what is missing shows against the index of their tensors."""
    for name in ("fp32", "bf16"):
        checkpoint = tmp_path / name
        shutil.copytree(out / name / f"step-{SAVED}", checkpoint)
        assert damage(checkpoint) is None
        (checkpoint / FILES).unlink()
        assert damage(checkpoint) is None
        data = sorted(checkpoint.glob("*.distcp"))[0]
        data.write_bytes(data.read_bytes()[:1000])
        assert re.match(r"__\d_\d\.distcp is cut short", str(damage(checkpoint)))
