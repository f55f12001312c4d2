"""Converted checkpoints in megatron-core, torch and transformers: real ranks load them, and their own are converted."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from megatron_rl.cli import main
from megatron_rl.resharding.families import canonical_tensors
from megatron_rl.resharding.folders.hf import read_hf_config
from tests.actor.models import write_model

RANKS = Path(__file__).parent / "convert_ranks.py"
MODELS = ("qwen3", "qwen2", "qwen3_moe")
# (model, sizes of the conversion, the four ranks that load it)
LOADS: list[tuple[str, list[str], dict[str, int]]] = [
    ("qwen3", ["--tensor-parallel=2", "--pipeline-parallel=2"], dict(data_parallel=4)),
    ("qwen3", [], dict(tensor_parallel=2, pipeline_parallel=2)),
    ("qwen2", ["--tensor-parallel=2"], dict(pipeline_parallel=2, virtual_pipeline=2, data_parallel=2)),
    ("qwen3_moe", [], dict(tensor_parallel=2, expert_parallel=2, data_parallel=2)),
]
# (model, the four ranks that train and save it, sizes with which a conversion has the same chunks)
SAVES = [
    ("qwen3", dict(tensor_parallel=2, pipeline_parallel=2), ["--tensor-parallel=2", "--pipeline-parallel=2"]),
    (
        "qwen3_moe",
        dict(expert_parallel=2, tensor_parallel=2, data_parallel=2),
        ["--tensor-parallel=2", "--expert-parallel=2"],
    ),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for name in MODELS:
        folders[name] = tmp_path_factory.mktemp(name) / "hf"
        write_model(name, folders[name])
    return folders


@pytest.fixture(scope="module")
def job(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, run_ranks: Callable[..., None]) -> Path:
    """A folder with checkpoints that four real ranks loaded, and others that they wrote, optimiser included."""
    folder = tmp_path_factory.mktemp("ranks")
    cases: list[dict[str, object]] = []
    for i, (model, sizes, actor) in enumerate(LOADS):
        assert main(["convert", "hf-to-megatron", str(models[model]), str(folder / f"load{i}"), *sizes]) == 0
        cases.append({"what": "load", "model": model, "checkpoint": f"load{i}", "actor": actor})
    for i, (model, actor, _) in enumerate(SAVES):
        cases.append({"what": "save", "model": model, "checkpoint": f"save{i}", "actor": actor})
    for case in cases:
        case |= {"model": str(models[str(case["model"])]), "checkpoint": str(folder / str(case["checkpoint"]))}
    (folder / "cases.json").write_text(json.dumps(cases))
    run_ranks(RANKS, 4, folder / "cases.json")
    return folder


@pytest.mark.parametrize("case", range(len(LOADS)), ids=[model for model, _, _ in LOADS])
def test_megatron_loads_what_is_converted_at_any_layout(case: int, job: Path) -> None:
    model, _, actor = LOADS[case]
    stages = actor.get("pipeline_parallel", 1)
    for rank in range(4):
        report = json.loads((job / f"load{case}-{rank}.json").read_text())
        assert report["differ"] == []
        assert report["count"] >= {"qwen3": 8, "qwen2": 7, "qwen3_moe": 11}[model] * 4 / stages


def described(folder: Path) -> dict[str, object]:
    """The model's tensors in a checkpoint, as torch's own reader finds them: dtype, shape and chunks."""
    found: dict[str, object] = {}
    for key, entry in dcp.FileSystemReader(folder).read_metadata().state_dict_metadata.items():
        if not key.startswith(("optimizer", "rng", "common_state")):
            chunks = sorted((tuple(c.offsets), tuple(c.sizes)) for c in getattr(entry, "chunks", ()))
            found[key] = getattr(entry, "properties", None), tuple(getattr(entry, "size", ())), chunks
    return found


@pytest.mark.parametrize("case", range(len(SAVES)), ids=[model for model, _, _ in SAVES])
def test_training_checkpoints_become_models_and_have_the_chunks_that_we_write(
    case: int, models: dict[str, Path], job: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    model, _, sizes = SAVES[case]
    trained = job / f"save{case}" / "step-1"
    assert main(["convert", "megatron-to-hf", str(trained), str(tmp_path / "hf"), "--model", str(models[model])]) == 0
    original = AutoModelForCausalLM.from_pretrained(models[model])
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(info.values())
    expected = dict(original.named_parameters())
    assert all(torch.equal(p, expected[name]) for name, p in again.named_parameters())
    assert main(["convert", "verify", str(trained), str(models[model])]) == 0
    assert main(["convert", "hf-to-megatron", str(models[model]), str(tmp_path / "again"), *sizes]) == 0
    theirs, ours = described(trained), described(tmp_path / "again")
    assert {key: ours.get(key) for key in theirs} == theirs
    extra = [key for key in ours if key not in theirs and "_extra_state" not in key]
    assert extra == (["decoder.layers.pre_mlp_layernorm.weight"] if model == "qwen3_moe" else [])


def test_torch_reads_every_tensor(models: dict[str, Path], tmp_path: Path) -> None:
    """torch's reader alone, without megatron-core: global tensors are the canonical ones, fused."""
    from safetensors.torch import load_file

    config = read_hf_config(models["qwen3"])
    assert main(["convert", "hf-to-megatron", str(models["qwen3"]), str(tmp_path / "m"), "--tensor-parallel=2"]) == 0
    metadata = dcp.FileSystemReader(tmp_path / "m").read_metadata()
    sizes = {k: (e.size, e.properties.dtype) for k, e in metadata.state_dict_metadata.items() if hasattr(e, "size")}
    state = {key: torch.empty(size, dtype=dtype) for key, (size, dtype) in sizes.items()}
    dcp.load(state, checkpoint_id=tmp_path / "m", no_dist=True)
    hf = load_file(models["qwen3"] / "model.safetensors")
    groups, dim = config["num_key_value_heads"], config["head_dim"]
    for layer in range(config["num_hidden_layers"]):
        attention = f"model.layers.{layer}.self_attn."
        q, k, v = (hf[f"{attention}{x}_proj.weight"].view(groups, -1, dim, 64) for x in "qkv")
        blocks = torch.cat([q, k, v], dim=1).reshape(-1, 64)
        assert torch.equal(state["decoder.layers.self_attention.linear_qkv.weight"][layer], blocks)
        gate, up = (hf[f"model.layers.{layer}.mlp.{x}_proj.weight"] for x in ("gate", "up"))
        assert torch.equal(state["decoder.layers.mlp.linear_fc1.weight"][layer], torch.cat([gate, up]))
        assert torch.equal(
            state["decoder.layers.mlp.linear_fc2.weight"][layer], hf[f"model.layers.{layer}.mlp.down_proj.weight"]
        )
    embedding = state["embedding.word_embeddings.weight"]
    assert torch.equal(embedding[:99], hf["model.embed_tokens.weight"]) and not embedding[99:].any()
    assert sum(t.numel() for t in state.values()) == sum(s.elements for s in canonical_tensors(config).values()) + 64
