"""Model folders with random weights."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_rl.actor.config import ModelConfig
from megatron_rl.data.config import DataConfig
from megatron_rl.errors import InputError
from megatron_rl.launch.initial_model import write_initial_model
from recipes.quickstart import quickstart

DATA = DataConfig(task="false_belief")


def write(folder, seed=0, dtype="float32", **changes):
    architecture = quickstart().model.architecture | changes
    write_initial_model(ModelConfig(architecture=architecture, dtype=dtype), DATA, seed, folder)
    return folder


def test_the_model_of_the_quick_start(tmp_path):
    before = torch.random.get_rng_state()
    folder = write(tmp_path / "model")
    assert torch.equal(torch.random.get_rng_state(), before)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert sum(p.numel() for p in model.parameters()) == 453_696
    assert model.dtype == torch.float32
    for name, weight in model.named_parameters():
        if "norm" in name:
            assert torch.equal(weight, torch.ones_like(weight))
        else:
            assert weight.std().item() == pytest.approx(0.08, rel=0.05) and abs(weight.mean().item()) < 0.003
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.eos_token_id == model.generation_config.eos_token_id == tokenizer.eos_token_id == 2
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_weights_depend_on_the_seed_alone(tmp_path):
    one, same, other = (
        load_file(write(tmp_path / n, s) / "model.safetensors") for n, s in (("a", 1), ("b", 1), ("c", 2))
    )
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert not torch.equal(one["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_dtype_and_rotary_base(tmp_path):
    folder = write(tmp_path / "m", dtype="bfloat16", rope_theta=5e5)
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert config.get("rope_parameters", config)["rope_theta"] == 5e5
    assert all(t.dtype == torch.bfloat16 for t in load_file(folder / "model.safetensors").values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 76}, "token ids up to 76, but config.json has vocab_size=76"),
        ({"model_type": "qwen33"}, "qwen33"),
        ({"initializer_range": "wide"}, "transformers refuses model.architecture: .*initializer_range"),
    ],
)
def test_a_refused_model_leaves_nothing_behind(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        write(tmp_path / "m", **changes)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_never_overwritten(tmp_path):
    with pytest.raises(FileExistsError, match="exists"):
        write(tmp_path)


def test_a_task_without_a_tokenizer(tmp_path):
    with pytest.raises(InputError, match="brings no tokenizer"):
        write_initial_model(ModelConfig(architecture={"model_type": "qwen3"}), DataConfig(), 0, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []
