"""SGLang engines' layouts in numbers of real models; what they hold is checked in test_plan.py on numbered tensors."""

from typing import Any

import pytest

from megatron_rl.resharding.layouts.sglang import EngineSizes, engine_violations, padded_vocabulary, sglang_layout
from megatron_rl.resharding.proof import check_layout
from tests.resharding.families.test_families import DEEPSEEK_V3, GLM4_MOE, MISTRAL, QWEN3_MOE

QWEN3_4B: dict[str, Any] = {
    "model_type": "qwen3",
    "hidden_size": 2560,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 9728,
    "vocab_size": 151936,
    "num_hidden_layers": 2,
    "tie_word_embeddings": True,
}


def test_more_workers_than_key_heads_replicate_them() -> None:
    layout = sglang_layout(QWEN3_4B, EngineSizes(tensor=16))
    check_layout(layout)
    qkv = "model.layers.1.self_attn.qkv_proj.weight"
    assert {shard.locals[qkv] for shard in layout.ranks} == {(2 * 128 + 2 * 128, 2560)}
    rows = [
        [
            (s.tensor.split(".")[-2], s.start[:2], s.shape[:2], s.offset // 2560)
            for s in shard.segments
            if s.local == qkv
        ]
        for shard in layout.ranks[2:4]
    ]
    # query group 1 has heads 4 to 7; workers 2 and 3 share it and both hold its key and value head
    assert rows == [
        [("q_proj", (1, 0), (1, 256), 0), ("k_proj", (1, 0), (1, 128), 256), ("v_proj", (1, 0), (1, 128), 384)],
        [("q_proj", (1, 256), (1, 256), 0), ("k_proj", (1, 0), (1, 128), 256), ("v_proj", (1, 0), (1, 128), 384)],
    ]


def test_a_worker_of_deepseek_v3() -> None:
    config = DEEPSEEK_V3 | {"num_hidden_layers": 4}
    layout = sglang_layout(config, EngineSizes(tensor=16, expert=8, pipeline=3, data=2))
    assert len(layout.ranks) == 96 and layout.ranks[0] is layout.ranks[48] and layout.ranks[0] is not layout.ranks[1]
    held = layout.ranks[47].locals  # layers 0 | 1 | 2, 3
    assert {name.split(".")[2] for name in held if "layers" in name} == {"2", "3"}
    layer = "model.layers.3."
    assert {name.removeprefix(layer): shape for name, shape in held.items() if name.startswith(layer)} == {
        "input_layernorm.weight": (7168,),
        "self_attn.fused_qkv_a_proj_with_mqa.weight": (1536 + 512 + 64, 7168),
        "self_attn.q_a_layernorm.weight": (1536,),
        "self_attn.q_b_proj.weight": (8 * 192, 1536),
        "self_attn.kv_a_layernorm.weight": (512,),
        "self_attn.kv_b_proj.weight": (8 * 256, 512),
        "self_attn.o_proj.weight": (7168, 8 * 128),
        "post_attention_layernorm.weight": (7168,),
        "mlp.gate.weight": (256, 7168),
        "mlp.gate.e_score_correction_bias": (256,),
        "mlp.experts.w13_weight": (32, 2 * 1024, 7168),
        "mlp.experts.w2_weight": (32, 7168, 1024),
        "mlp.shared_experts.gate_up_proj.weight": (2 * 128, 7168),
        "mlp.shared_experts.down_proj.weight": (7168, 128),
    }
    experts = {s.tensor.split(".")[5] for s in layout.ranks[47].segments if ".experts." in s.tensor}
    assert experts == {str(e) for e in range(224, 256)}


def test_vocabulary_padding() -> None:
    assert [padded_vocabulary(151936, n) for n in (1, 2, 16, 32, 3)] == [151936, 151936, 151936, 151936, 152064]
    assert padded_vocabulary(129280, 32) == 129280


def test_every_violation_at_once() -> None:
    assert engine_violations(QWEN3_4B, EngineSizes(tensor=16, pipeline=2)) == []
    assert engine_violations(DEEPSEEK_V3, EngineSizes(tensor=32, expert=32, pipeline=2, data=8)) == []
    assert engine_violations(MISTRAL, EngineSizes(tensor=3, pipeline=5)) == [
        "engine.tensor_parallel=3 does not divide num_attention_heads=4; 1, 2, 4 do.",
        "engine.tensor_parallel=3 and num_key_value_heads=2 do not divide each other; 1, 2, 4 do.",
        "engine.pipeline_parallel=5 exceeds num_hidden_layers=4.",
    ]
    assert engine_violations(MISTRAL, EngineSizes(expert=2)) == [
        "engine.expert_parallel=2, but mistral has no experts; use 1."
    ]
    assert engine_violations(GLM4_MOE, EngineSizes(tensor=4, expert=3)) == [
        "engine.expert_parallel=3 does not divide num_experts=4; 1, 2, 4 do.",
        "engine.expert_parallel=3 does not divide engine.tensor_parallel=4; 1, 2, 4 do.",
    ]
    narrow = GLM4_MOE | {"moe_intermediate_size": 15, "n_shared_experts": 4}
    assert engine_violations(narrow, EngineSizes(tensor=4, expert=2)) == [
        "engine.tensor_parallel / engine.expert_parallel = 4 / 2 does not divide moe_intermediate_size=15; "
        "1, 3, 5, 15 do."
    ]
    assert engine_violations(GLM4_MOE, EngineSizes(tensor=0, data=-1)) == [
        "engine.tensor_parallel=0 is not positive.",
        "engine.data_parallel=-1 is not positive.",
    ]


@pytest.mark.parametrize(("dense", "problems"), [([], 0), ([1], 1)])
def test_only_dense_layers_have_an_intermediate_size(dense: list[int], problems: int) -> None:
    config = QWEN3_MOE | {"intermediate_size": 6145, "mlp_only_layers": dense}
    assert len(engine_violations(config, EngineSizes(tensor=2))) == problems


@pytest.mark.parametrize("config", [QWEN3_4B, DEEPSEEK_V3 | {"num_hidden_layers": 5}, GLM4_MOE, MISTRAL])
def test_parameters_are_tiled(config: dict[str, Any]) -> None:
    for sizes in (EngineSizes(), EngineSizes(tensor=2, pipeline=3)):
        check_layout(sglang_layout(config, sizes))
