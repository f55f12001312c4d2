"""The rotary embedding that is read of a config.json, against the one that transformers makes of it."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

from megatron_rl.errors import InputError
from megatron_rl.resharding.families.architecture import read_architecture
from tests.actor.models import QWEN3

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
PLAIN = {"rope_type": "default", "rope_theta": 1e4}


def ours(changes: dict[str, Any]) -> torch.Tensor:
    return read_architecture(QWEN3 | {"max_position_embeddings": 4096} | changes).inverse_frequencies()


def transformers_own(changes: dict[str, Any]) -> torch.Tensor:
    config = AutoConfig.for_model(**copy.deepcopy(QWEN3 | {"max_position_embeddings": 4096} | changes))
    made = Qwen3RotaryEmbedding(config)
    assert made.attention_scaling == 1.0
    return made.inv_freq


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("theta", [1e4, 5e5, 1e6, 1e7, 1_000_000])
@pytest.mark.parametrize("head_dim", [24, 64, 80, 128])
def test_rotary_frequencies_are_transformers_own(head_dim: int, theta: float, scaled: bool) -> None:
    rope: dict[str, Any] = PLAIN | {"rope_theta": theta}
    if scaled:  # Llama 3.1's
        rope |= LLAMA3 | {"original_max_position_embeddings": 8192}
    config = LlamaConfig(head_dim=head_dim, rope_parameters=rope)
    found = read_architecture(config.to_dict()).inverse_frequencies()
    assert torch.equal(found, LlamaRotaryEmbedding(config).inv_freq)


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_theta": 7e4},
        {"rope_theta": 1_000_000, "rope_parameters": None},
        {"rope_parameters": PLAIN, "rope_scaling": LLAMA3 | {"original_max_position_embeddings": 64}},
        {"rope_parameters": PLAIN | {"rope_theta": 5e4}, "rope_scaling": LLAMA3, "rope_theta": 7e4},
        {"rope_parameters": PLAIN | {"rope_theta": 5e4}, "rope_scaling": {}, "rope_theta": 7e4},
        {"rope_parameters": {"rope_type": "default"}, "rope_theta": 7e4},
        {"rope_scaling": {"type": "linear", "rope_type": "default"}},
        {"rope_scaling": {"type": "llama3"} | {k: v for k, v in LLAMA3.items() if k != "rope_type"}},
        {"rope_parameters": LLAMA3},  # the original length is max_position_embeddings
        {"rope_parameters": LLAMA3, "original_max_position_embeddings": 32},
        {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": 64}, "original_max_position_embeddings": 32},
        {"rope_parameters": PLAIN | {"partial_rotary_factor": 1.0}},
    ],
)
def test_every_spelling_means_what_it_means_to_transformers(changes: dict[str, Any]) -> None:
    assert torch.equal(ours(changes), transformers_own(changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rope_theta": None}, "rope_theta=None; a number above 0"),
        ({"rope_theta": "10000"}, "rope_theta='10000'; a number above 0"),
        ({"rope_theta": True}, "rope_theta=True; a number above 0"),
        ({"rope_theta": 0}, "rope_theta=0; a number above 0"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": None}}, "rope_theta=None; a number above 0"),
        ({"rope_parameters": "linear"}, "rope_parameters='linear'; a JSON object"),
        ({"rope_scaling": "linear"}, "rope_scaling='linear'; a JSON object"),
        ({"rope_parameters": "linear", "rope_scaling": PLAIN}, "rope_parameters='linear'; a JSON object"),
        ({"rope_scaling": {"type": "default", "rope_type": "linear", "factor": 8.0}}, "rope_type='linear'"),
        (
            {"rope_parameters": PLAIN, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            "rope_type='yarn' in rope_s",
        ),
        ({"rope_parameters": {"rope_type": None, "type": "default"}}, "rope_type=None"),
        ({"rope_parameters": {"full_attention": PLAIN}}, "for each type of layer"),
        ({"rope_parameters": {k: v for k, v in LLAMA3.items() if k != "factor"}}, "no factor in rope_parameters"),
        ({"rope_scaling": LLAMA3 | {"low_freq_factor": None}}, "low_freq_factor=None; a number above 0"),
        ({"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}}, "more than low_freq_factor=1.0"),
        (
            {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 64.5}},
            "original_max_position_embeddings=64.5",
        ),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5; only 1.0"),
    ],
)
def test_what_is_not_computed_is_refused_in_a_sentence(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        ours(changes)
    assert str(error.value).startswith("config.json ") and said in str(error.value)


NUMBERS = st.sampled_from([1.0, 4.0, 8, 32.0, 64, 1e4, 0, -1.0, None, "8", True])
KINDS = st.sampled_from(["default", "llama3", "linear", "yarn", None])
OBJECTS = st.fixed_dictionaries(
    {},
    optional={
        "type": KINDS,
        "rope_type": KINDS,
        "rope_theta": NUMBERS,
        "factor": NUMBERS,
        "low_freq_factor": NUMBERS,
        "high_freq_factor": NUMBERS,
        "original_max_position_embeddings": NUMBERS,
        "partial_rotary_factor": NUMBERS,
        "full_attention": st.just({"rope_type": "default"}),
    },
)
ROPES = st.one_of(OBJECTS, OBJECTS.map(lambda found: LLAMA3 | found), st.sampled_from([None, "linear", [], False]))
CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "rope_parameters": ROPES,
        "rope_scaling": ROPES,
        "rope_theta": NUMBERS,
        "original_max_position_embeddings": NUMBERS,
        "partial_rotary_factor": NUMBERS,
    },
)


@settings(max_examples=200, deadline=None)
@given(CHANGES)
def test_whatever_is_taken_is_what_transformers_computes(changes: dict[str, Any]) -> None:
    try:
        found = ours(changes)
    except InputError:
        return
    assert torch.equal(found, transformers_own(changes))
