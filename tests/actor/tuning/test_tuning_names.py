"""Patterns over the names of weights, and what is said of those that cannot be followed."""

import subprocess
import sys

import pytest

from megatron_rl.actor.config import ActorConfig, LoRAConfig
from megatron_rl.actor.tuning.names import frozen_tensors, problems, targets, trained_elements
from megatron_rl.resharding.families import canonical_tensors
from tests.actor.models import CONFIGS, QWEN3

DENSE = QWEN3 | {"num_hidden_layers": 12, "tie_word_embeddings": True}
MIXTURE = CONFIGS["qwen3_moe"].to_dict()
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def said(hf_config: dict, **options) -> list[str]:
    lora = LoRAConfig(**options.pop("lora", {}))
    return problems(ActorConfig(**options, lora=lora), hf_config)


@pytest.mark.parametrize(
    ("patterns", "layers"),
    [
        (["model.layers.[0-3].*"], {0, 1, 2, 3}),
        (["model.layers.{2-10}.*"], set(range(2, 11))),
        (["model.layers.{2-10}.*", "!model.layers.1?.*"], set(range(2, 10))),
        (["model.layers.1.*", "model.layers.11.*"], {1, 11}),
        (["*", "!model.layers.{0-10}.*"], {11}),
    ],
)
def test_layers_are_frozen_by_their_numbers(patterns: list[str], layers: set[int]) -> None:
    frozen = {name for name in frozen_tensors(DENSE, patterns) if name.startswith("model.layers.")}
    assert frozen == {n for n in canonical_tensors(DENSE) if any(n.startswith(f"model.layers.{i}.") for i in layers)}
    assert not said(DENSE, freeze=patterns)


def test_all_but_attention() -> None:
    config = ActorConfig(freeze=["*", "!*.self_attn.?_proj.*"])
    left = set(canonical_tensors(DENSE)) - frozen_tensors(DENSE, config.freeze)
    assert left == {f"model.layers.{i}.self_attn.{name}.weight" for i in range(12) for name in ATTENTION}
    attention = 12 * 32 * (2 * 32 + 2 * 16)  # q and o; k and v have half as many heads
    assert trained_elements(config, DENSE) == (attention, attention)


@pytest.mark.parametrize(
    ("patterns", "modules"),
    [
        (["linear_qkv"], [("q_proj", "k_proj", "v_proj")]),
        (["q_proj", "k_proj", "v_proj"], [("q_proj", "k_proj", "v_proj")]),
        (["self_attn.*"], [("q_proj", "k_proj", "v_proj"), ("o_proj",)]),
        (["mlp.linear_fc?"], [("gate_proj", "up_proj"), ("down_proj",)]),
        (["decoder.layers.*.linear_proj", "down_proj"], [("o_proj",), ("down_proj",)]),
    ],
)
def test_targets_have_megatrons_names_or_hugging_faces(patterns: list[str], modules: list[tuple[str, ...]]) -> None:
    assert not said(DENSE, lora={"rank": 2, "targets": patterns})
    found = targets(DENSE, patterns)
    assert [tuple(part.split(".")[-2] for part in target.parts) for target in found] == modules * 12


def test_a_range_chooses_the_layers_of_targets() -> None:
    assert [t.name for t in targets(DENSE, ["model.layers.{9-20}.mlp.down_proj"])] == [
        f"model.layers.{i}.mlp.down_proj" for i in (9, 10, 11)
    ]


def test_the_numbers_of_adapters_are_counted() -> None:
    trained, changed = trained_elements(ActorConfig(lora=LoRAConfig(rank=2)), DENSE)
    qkv, proj, fc1, fc2 = 32 + 64, 32 + 32, 32 + 128, 64 + 32
    assert trained == 12 * 2 * (qkv + proj + fc1 + fc2)
    assert changed == 12 * (32 * 64 + 32 * 32 + 32 * 128 + 64 * 32)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"freeze": ["model.layers.12.*"]}, ["'model.layers.12.*' matches no tensor", "model.embed_tokens.weight"]),
        ({"freeze": ["!lm_head.*"]}, ["'!lm_head.*' matches no tensor"]),
        ({"freeze": ["*.q_proj.*"]}, ["q_proj.weight and not", "k_proj.weight and", "in one tensor"]),
        ({"freeze": ["*"]}, ["every tensor of the model: nothing is left to train"]),
        ({"freeze": ["*.{0-5}.*"], "pipeline_parallel": 2}, []),  # the embedding is trained
        (
            {"freeze": ["*.{0-5}.*", "*embed*"], "pipeline_parallel": 2},
            ["actor.freeze leaves nothing to train to pipeline stage 0: lower actor.pipeline_parallel."],
        ),
        ({"lora": {"rank": 2, "targets": ["fc3"]}}, ["'fc3' matches no matrix", "linear_qkv, q_proj, k_proj"]),
        ({"lora": {"rank": 2, "targets": []}}, ["actor.lora.targets is empty"]),
        ({"lora": {"rank": 2, "targets": ["gate_proj"]}}, ["gate_proj alone", "linear_fc1 is gate_proj and up_proj"]),
        ({"lora": {"rank": 32}}, []),
        (
            {"lora": {"rank": 33}},
            ["actor.lora.rank=33 is more than the 32 rows or columns of model.layers.0.self_attn"],
        ),
        ({"lora": {"rank": 2}, "freeze": ["*"]}, ["actor.freeze is for training without adapters"]),
        ({"lora": {"rank": 2}, "fp8": "blockwise"}, ["actor.fp8=blockwise is for training without adapters"]),
        (
            {"lora": {"rank": 2, "targets": ["*.layers.0.*.linear_qkv"]}, "pipeline_parallel": 3},
            ["actor.lora.targets leaves nothing to train to pipeline stage 1"],
        ),
    ],
)
def test_what_cannot_be_followed(options: dict, parts: list[str]) -> None:
    found = said(DENSE, **options)
    assert len(found) == (1 if parts else 0), found
    assert all(part in found[0] for part in parts), found


def test_experts_get_no_adapters() -> None:
    found = said(MIXTURE, lora={"rank": 2})
    assert any("'linear_fc1' names matrices of experts" in f and "targets=linear_qkv,linear_proj." in f for f in found)
    assert not said(MIXTURE, lora={"rank": 2, "targets": ["linear_qkv", "linear_proj"]})


def test_names_need_no_torch() -> None:
    code = "import sys, megatron_rl.actor.tuning.names; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
