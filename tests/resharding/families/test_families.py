"""The tables of Mistral, DeepSeek-V3 and GLM-4 MoE against real modules of Megatron-Core and transformers."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_rl.errors import InputError
from megatron_rl.resharding.families import canonical_tensors, family
from megatron_rl.resharding.families.architecture import read_architecture
from megatron_rl.resharding.families.table import aliases
from megatron_rl.resharding.layout import ParallelSizes
from megatron_rl.resharding.layouts.megatron import layer_places, layout_violations, megatron_layout
from megatron_rl.resharding.layouts.transformers import transformers_layout
from megatron_rl.resharding.proof import check_layout
from tests.conftest import PATIENCE, ROOT

MISTRAL: dict[str, Any] = {
    "model_type": "mistral",
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "vocab_size": 61,
    "num_hidden_layers": 4,
    "tie_word_embeddings": False,
}
EXPERTS = {
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_nextn_predict_layers": 1,
}
GLM4_MOE = MISTRAL | EXPERTS | {"model_type": "glm4_moe", "attention_bias": True, "use_qk_norm": True}
PLAIN_GLM = GLM4_MOE | {"attention_bias": False, "use_qk_norm": False}
DEEPSEEK = MISTRAL | EXPERTS | {
    "model_type": "deepseek_v3",
    "num_hidden_layers": 5,
    "num_key_value_heads": 4,
    "q_lora_rank": 8,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
}  # fmt: skip
QWEN3_MOE = MISTRAL | {"model_type": "qwen3_moe", "num_experts": 4, "moe_intermediate_size": 16}
NO_Q_LORA = DEEPSEEK | {"q_lora_rank": None, "num_nextn_predict_layers": 0}
DEEPSEEK_V3 = DEEPSEEK | {
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "first_k_dense_replace": 3,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "vocab_size": 129280,
}
REAL: list[tuple[dict[str, Any], dict[str, int]]] = [
    (MISTRAL, dict(tensor=2, pipeline=2)),
    (GLM4_MOE, dict()),
    (GLM4_MOE | {"tie_word_embeddings": True}, dict(tensor=2, pipeline=2, expert=2, data=2)),
    (PLAIN_GLM, dict(tensor=2, expert_tensor=2, expert=2, data=2)),
    (GLM4_MOE | {"num_hidden_layers": 8}, dict(pipeline=2, virtual=2, expert=4, data=4)),
    (DEEPSEEK, dict(tensor=4)),
    (DEEPSEEK, dict(tensor=2, pipeline=3, first_stage=2, last_stage=1, expert=2)),
    (NO_Q_LORA, dict(tensor=2, pipeline=2, last_stage=2, expert_tensor=2)),
    (DEEPSEEK | {"num_hidden_layers": 8}, dict(pipeline=3, virtual=2, first_stage=2, last_stage=2, expert=2, data=2)),
]


@pytest.fixture(scope="module")
def real_models() -> list[list[Any]]:
    """What every rank of each of REAL builds."""
    cases = [(config, sizes, list(range(ParallelSizes(**sizes).world))) for config, sizes in REAL]
    script = Path(__file__).parent / "real_families.py"
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", str(script)]
    done = subprocess.run(command, input=json.dumps(cases), env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr.splitlines()[-1]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", range(len(REAL)))
def test_real_megatron_models_have_these_parameters_and_layers(case: int, real_models: list[list[Any]]) -> None:
    config, sizes = REAL[case]
    assert layout_violations(config, ParallelSizes(**sizes)) == []
    layout = megatron_layout(config, ParallelSizes(**sizes))
    check_layout(layout)
    for shard, real in zip(layout.ranks, real_models[case], strict=True):
        assert shard.locals == {name: tuple(shape) for name, shape in real["shapes"].items()}
        norms = {s.local: s.tensor for s in shard.segments if s.local.endswith("input_layernorm.weight")}
        assert norms == {
            f"{place}input_layernorm.weight": f"model.layers.{n}.input_layernorm.weight"
            for place, n in real["layers"].items()
        }


@pytest.mark.parametrize(
    "config",
    [MISTRAL, MISTRAL | {"tie_word_embeddings": True}, GLM4_MOE, PLAIN_GLM, DEEPSEEK, NO_Q_LORA],
)
def test_names_and_shapes_are_those_of_transformers(config: dict[str, Any]) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    expected = {name: tuple(p.shape) for name, p in model.named_parameters()}
    expected |= {name: tuple(b.shape) for name, b in model.named_buffers() if name.endswith("correction_bias")}
    layout = transformers_layout(config)
    assert layout.ranks[0].locals == expected
    predicted = f"model.layers.{config['num_hidden_layers']}."
    assert layout.unused == {name for name in layout.tensors if name.startswith(predicted)}
    assert bool(layout.unused) == bool(config.get("num_nextn_predict_layers"))


def test_deepseek_v3_has_671_billion_parameters_and_a_predictor() -> None:
    tensors = canonical_tensors(DEEPSEEK_V3)
    counts = [spec.elements for name, spec in tensors.items() if not name.startswith("model.layers.61.")]
    assert sum(counts) == 671_026_419_200  # as transformers counts the model, its buffers included
    assert tensors["model.layers.61.eh_proj.weight"].shape == (7168, 2 * 7168)
    assert tensors["model.layers.60.mlp.gate.e_score_correction_bias"].dtype == "float32"
    assert aliases(family(DEEPSEEK_V3), DEEPSEEK_V3) == {
        "model.layers.61.embed_tokens.weight": "model.embed_tokens.weight",
        "model.layers.61.shared_head.head.weight": "lm_head.weight",
    }


def test_an_uneven_pipeline() -> None:
    """61 layers over 16 stages: 4 + 14 x 4 + 1."""
    sizes = ParallelSizes(tensor=8, pipeline=16, expert=8, first_stage=4, last_stage=1)
    assert layout_violations(DEEPSEEK_V3, sizes) == []
    places = layer_places(61, sizes)
    assert places[:5] == [(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 0, 3), (1, 0, 0)] and places[60] == (15, 0, 0)
    (problem,) = layout_violations(DEEPSEEK_V3, ParallelSizes(pipeline=16, last_stage=3))
    assert "actor.first_stage=0 and actor.last_stage=3" in problem
    assert "(num_hidden_layers=61, actor.pipeline_parallel=16)" in problem
    (problem,) = layout_violations(DEEPSEEK_V3, ParallelSizes(pipeline=16))
    assert "actor.pipeline_parallel=16 does not divide num_hidden_layers=61; 1, 61 do." in problem


def test_latent_attention_with_transformer_engine() -> None:
    """TELinear holds the down-projections whole on every rank; the latent norms move into the up-projections."""
    sizes = ParallelSizes(tensor=8, expert=4)
    config = DEEPSEEK | {"num_attention_heads": 8, "intermediate_size": 64, "moe_intermediate_size": 32}
    problems = layout_violations(config | {"q_lora_rank": 9}, sizes)
    assert [p.split(" does not divide ")[1].split(";")[0] for p in problems] == ["q_lora_rank=9"]
    assert layout_violations(config | {"q_lora_rank": 9}, sizes, fused_norms=True) == []
    held = megatron_layout(config, sizes, fused_norms=True).ranks[7].locals
    attention = "0/decoder.layers.1.self_attention."
    assert {n.removeprefix(attention): shape for n, shape in held.items() if n.startswith(attention)} == {
        "linear_q_down_proj.weight": (8, 32),
        "linear_q_up_proj.layer_norm_weight": (8,),
        "linear_q_up_proj.weight": (12, 8),
        "linear_kv_down_proj.weight": (16, 32),
        "linear_kv_up_proj.layer_norm_weight": (12,),
        "linear_kv_up_proj.weight": (14, 12),
        "linear_proj.weight": (32, 6),
    }
    assert "0/mtp.layers.0.transformer_layer.self_attention.linear_kv_up_proj.layer_norm_weight" in held


@pytest.mark.parametrize("config", [MISTRAL, GLM4_MOE, DEEPSEEK])
def test_the_actor_says_that_it_does_not_train_them(config: dict[str, Any]) -> None:
    with pytest.raises(
        InputError, match=f"model_type='{config['model_type']}'.*it trains llama, qwen2, qwen3, .* plan and"
    ):
        read_architecture(config)


@pytest.mark.parametrize("key", ["first_k_dense_replace", "kv_lora_rank", "n_routed_experts", "moe_intermediate_size"])
def test_a_size_that_config_json_lacks_is_named(key: str) -> None:
    with pytest.raises(InputError, match=key):
        canonical_tensors({k: v for k, v in DEEPSEEK.items() if k != key})


@pytest.mark.parametrize(
    ("config", "key", "wrong", "needed"),
    [
        (MISTRAL, "hidden_size", "64", "a whole number of 1 or more is needed"),
        (MISTRAL | {"head_dim": None}, "num_attention_heads", 0, "a whole number of 1 or more is needed"),
        (MISTRAL, "vocab_size", True, "a whole number of 1 or more is needed"),
        (DEEPSEEK, "kv_lora_rank", "a", "a whole number of 1 or more is needed"),
        (DEEPSEEK, "n_shared_experts", "1", "a whole number of 1 or more is needed"),
        (DEEPSEEK, "num_nextn_predict_layers", 1.0, "a whole number of 0 or more is needed"),
        (DEEPSEEK, "num_nextn_predict_layers", -1, "a whole number of 0 or more is needed"),
        (DEEPSEEK, "first_k_dense_replace", "x", "a whole number of 0 or more is needed"),
        (QWEN3_MOE, "decoder_sparse_step", -1, "a whole number of 1 or more is needed"),
        (QWEN3_MOE, "mlp_only_layers", 3, "a list of layers' numbers is needed"),
        (QWEN3_MOE, "mlp_only_layers", ["1"], "a list of layers' numbers is needed"),
        (MISTRAL, "model_type", ["llama"], "which is no known family"),
        (MISTRAL, "model_type", {}, "which is no known family"),
        (MISTRAL, "tie_word_embeddings", "no", "it must be True or False"),
        (GLM4_MOE, "use_qk_norm", "no", "it must be True or False"),
        (MISTRAL, "dtype", "int8", "it must be 'bfloat16', 'float16', 'float32' or"),
        (MISTRAL, "torch_dtype", ["bf16"], "it must be 'bfloat16', 'float16', 'float32' or"),
    ],
)
def test_a_value_that_cannot_be_is_named(config: dict[str, Any], key: str, wrong: object, needed: str) -> None:
    with pytest.raises(InputError) as error:
        canonical_tensors(config | {key: wrong})
    assert str(error.value).startswith(f"config.json has {key}={wrong!r}") and needed in str(error.value)


def test_an_unsupported_option_is_named() -> None:
    with pytest.raises(InputError, match="attention_bias=True; deepseek_v3 is supported with False only"):
        family(DEEPSEEK | {"attention_bias": True})
