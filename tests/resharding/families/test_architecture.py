"""What is read of config.json."""

import copy
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from megatron_rl.errors import InputError
from megatron_rl.resharding.families.architecture import TRAINED, differences, read_architecture
from tests.actor.models import QWEN3


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, ""),
        ({"max_position_embeddings": 77, "dtype": "bfloat16"}, ""),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}, ""),  # transformers 5's spelling
        ({"intermediate_size": 128}, "mlp_hidden 128, not 64"),
        ({"hidden_size": 64, "tie_word_embeddings": True}, "hidden 64, not 32, tied True, not False"),
        ({"rms_norm_eps": 1e-5}, "norm_eps 1e-05, not 1e-06"),
        ({"rope_theta": 1e6}, "another rotary embedding"),
        ({"model_type": "llama"}, "family llama, not qwen3, qk_norm False, not True"),
    ],
)
def test_differences_of_two_models(changed: dict[str, Any], said: str) -> None:
    assert differences(QWEN3, QWEN3 | changed) == said


def small(family: str) -> dict[str, Any]:
    """A config.json of the family whose every optional key is set, none to what transformers takes without it."""
    found = QWEN3 | {
        "model_type": family,
        "max_position_embeddings": 77,
        "rms_norm_eps": 1e-3,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "dtype": "float32",
    }
    if family == "qwen3_moe":
        found |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "norm_topk_prob": True}
    return found


KEYS = [
    *("num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "hidden_act"),
    *("tie_word_embeddings", "use_sliding_window", "norm_topk_prob", "num_experts"),
]


@pytest.mark.parametrize("change", ["missing", "null"])
@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("family", sorted(TRAINED))
def test_keys_that_are_missing_or_null_are_what_transformers_takes_or_refused(
    family: str, key: str, change: str
) -> None:
    config = {k: v for k, v in small(family).items() if k != key} | ({key: None} if change == "null" else {})
    try:
        ours = read_architecture(config)
    except InputError as error:
        assert key in str(error) or key == "num_experts"
        return
    theirs = AutoConfig.for_model(**copy.deepcopy(config))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(theirs)
    attention = model.model.layers[0].self_attn
    rows = attention.q_proj.weight.shape[0], attention.k_proj.weight.shape[0]
    assert (ours.heads * ours.head_dim, ours.kv_heads * ours.head_dim) == rows
    assert attention.head_dim == ours.head_dim
    assert (theirs.max_position_embeddings, model.model.norm.variance_epsilon) == (ours.max_positions, ours.norm_eps)
    assert (theirs.tie_word_embeddings, theirs.hidden_act) == (ours.tied, "silu")
    if ours.experts:
        assert (theirs.num_local_experts, theirs.norm_topk_prob) == (ours.experts, ours.norm_topk)


def test_both_names_of_the_number_of_experts_as_transformers_reads_them() -> None:
    config = small("qwen3_moe") | {"num_local_experts": 3}
    assert read_architecture(config).experts == AutoConfig.for_model(**config).num_local_experts == 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rms_norm_eps": "1e-6"}, "rms_norm_eps='1e-6'; a number such as 1e-06"),
        ({"rms_norm_eps": 1}, "rms_norm_eps=1; a number such as 1e-06"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings=1; it must be True or False"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types="),
        ({"layer_types": ["full_attention"]}, "only full_attention, 2 times"),
        ({"use_sliding_window": True}, "use_sliding_window=True; only False"),
        ({"head_dim": None}, "head_dim=null, which qwen3 cannot have"),
        ({"model_type": "qwen2", "num_attention_heads": 6}, "not a multiple of num_key_value_heads=4."),
    ],
)
def test_an_option_that_is_not_computed_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        read_architecture(QWEN3 | {"num_key_value_heads": 4} | changes)
    assert said in str(error.value)


def test_a_default_is_said_to_be_one() -> None:
    config = {key: value for key, value in QWEN3.items() if key != "num_key_value_heads"}
    with pytest.raises(InputError, match="=4, not a multiple of num_key_value_heads=32, transformers' default"):
        read_architecture(config)
