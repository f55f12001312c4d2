"""What is read of config.json."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from megatron_rl.resharding.families.architecture import differences, read_architecture
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


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("theta", [1e4, 5e5, 1e6, 1e7])
@pytest.mark.parametrize("head_dim", [24, 64, 80, 128])
def test_rotary_frequencies_are_transformers_own(head_dim: int, theta: float, scaled: bool) -> None:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    if scaled:  # Llama 3.1's
        rope |= {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        rope["original_max_position_embeddings"] = 8192
    config = LlamaConfig(head_dim=head_dim, rope_parameters=rope)
    ours = read_architecture(config.to_dict()).inverse_frequencies()
    assert torch.equal(ours, LlamaRotaryEmbedding(config).inv_freq)
