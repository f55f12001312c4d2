"""A whole run with adapters and a reference that follows: what engines compute with, what it leaves, how it goes on."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from megatron_rl.tracking.run_folder import RunFolder
from tests.conftest import PATIENCE
from tests.runs.test_train import rows, start

OPTIONS = [
    *("sft.steps=2", "run.steps=4", "run.save_every=2", "algorithm.epochs=1"),
    "algorithm.reference_ema=0.5",
    *("actor.lora.rank=8", "actor.lora.targets=linear_qkv,o_proj,model.layers.{1-2}.mlp.*", "sft_optimizer.lr=0.02"),
    *("actor.optimizer.lr=0.02", "algorithm.entropy_coef=0.1"),  # a gradient also where no reward tells answers apart
]
WEIGHTS = "model.safetensors"


def train(run: RunFolder, *more: str) -> tuple[int, str, str]:
    process = start(run.path.parent, run.path.name, *OPTIONS, *more)
    out, error = process.communicate(timeout=PATIENCE)
    return process.returncode, out, error


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = RunFolder(tmp_path_factory.mktemp("adapted") / "whole")
    code, out, error = train(run)
    assert code == 0, error
    assert "each proved" in out and "warning" not in out
    return run


def back(whole: RunFolder, name: str) -> RunFolder:
    """A copy of the run as it was after two steps of RL."""
    run = RunFolder(whole.path.parent / name)
    shutil.copytree(whole.path, run.path)
    for late in (run.checkpoints / "step-1-000004", run.export, run.adapter):
        shutil.rmtree(late)
    run.manifest_file.unlink()
    config = run.config()
    config.run.name = name
    run.write_config(config)
    return run


def test_engines_and_exports_have_the_base_and_the_adapters_in_one(whole: RunFolder) -> None:
    rl = [row for row in rows(whole) if row["stage"] == "rl"]
    assert len(rl) == 4 and max(row["max_logprob_gap"] for row in rl) < 1e-6  # on-policy to a bit of a float32
    assert all(row["swap_bytes"] == 4 * 453_696 and row["replicas_differ"] == 0 for row in rl)
    # the reference began as the warm start, and so did the policy
    assert rl[0]["kl"] < 1e-6 < 1e-4 < rl[3]["kl"]
    base, merged = load_file(whole.initial_model / WEIGHTS), load_file(whole.export / WEIGHTS)
    adapter = load_file(whole.adapter / "adapter_model.safetensors")
    description = json.loads((whole.adapter / "adapter_config.json").read_text())
    assert description["r"] == 8 and description["lora_alpha"] == 32
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    assert {f"base_model.model.{name.removesuffix('.weight')}" for name in changed} == {
        key.rpartition(".lora_")[0] for key in adapter
    }
    assert len(changed) == 3 * 4 + 2 * 3 and set(description["target_modules"]) == {
        name.removesuffix(".weight") for name in changed
    }
    for name in changed:
        module = f"base_model.model.{name.removesuffix('.weight')}"
        b, a = (adapter[f"{module}.lora_{which}.weight"] for which in "BA")
        assert (merged[name] - base[name] - 4 * b @ a).abs().max() < 1e-6
        assert (merged[name] - base[name]).abs().max() > 1e-3


def test_it_goes_on_bit_identically(whole: RunFolder) -> None:
    """Adapters, their moments and the reference, which is an average by now."""
    run = back(whole, "again")
    code, _, error = train(run)
    assert code == 0, error
    for folder in ("hf", "adapter"):
        [file] = (whole.path / folder).glob("*.safetensors")
        assert file.read_bytes() == (run.path / folder / file.name).read_bytes()
    assert rows(run)[-2:] == rows(whole)[-2:]


def test_it_goes_on_at_another_world_size(whole: RunFolder) -> None:
    run = back(whole, "single")
    code, _, error = train(run, "actor.tensor_parallel=1")
    assert code == 0, error
    one, other = load_file(whole.export / WEIGHTS), load_file(run.export / WEIGHTS)
    errors = torch.cat([(one[name] - other[name]).abs().flatten() for name in one])
    assert errors.quantile(0.9) < 1e-4
    (_, first), (_, then) = ([r["kl"] for r in rows(of) if r["stage"] == "rl"][2:] for of in (whole, run))
    assert then == pytest.approx(first, rel=1e-2)


def test_what_it_cannot_go_on_with(whole: RunFolder) -> None:
    run = back(whole, "refused")
    code, _, error = train(run, "actor.lora.rank=4")
    assert code == 2 and "actor.lora.rank 8 -> 4" in error
    weights = run.initial_model / WEIGHTS
    content = bytearray(weights.read_bytes())
    content[-1] ^= 64
    weights.write_bytes(content)
    code, _, error = train(run)
    assert code == 2 and "are not those that the adapters" in error and str(run.initial_model) in error
