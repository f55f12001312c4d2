"""What is computed in place of a model that no laptop holds."""

from typing import Any

import pytest

from megatron_rl.actor.config import ActorConfig, LoRAConfig
from megatron_rl.config import Config
from megatron_rl.errors import InputError
from megatron_rl.launch.numerics.compare import Comparison, Difference
from megatron_rl.launch.numerics.report import described, table
from megatron_rl.launch.numerics.shape import MOST_RANKS, shape
from megatron_rl.resharding.families.architecture import read_architecture
from megatron_rl.resharding.layouts.megatron import layout_violations

QWEN3_235B: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 94,
    "num_attention_heads": 64,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rope_theta": 1000000.0,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 1536,
    "norm_topk_prob": True,
    "tie_word_embeddings": False,
}
LAYOUTS: list[dict[str, int]] = [
    dict(tensor_parallel=8, pipeline_parallel=4, first_stage=23, last_stage=23, expert_parallel=8),
    dict(tensor_parallel=4, pipeline_parallel=2, virtual_pipeline=47, expert_parallel=4),
    dict(tensor_parallel=2, expert_tensor_parallel=2, expert_parallel=16, data_parallel=16),
    dict(data_parallel=64, expert_parallel=64),
    dict(context_parallel=4, expert_parallel=16, data_parallel=4),
    dict(expert_parallel=4, expert_tensor_parallel=4, data_parallel=16),
    dict(tensor_parallel=4, pipeline_parallel=2, context_parallel=4, data_parallel=8, expert_parallel=64),
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_large_model_gets_a_small_one_of_its_kind(layout: dict[str, int]) -> None:
    config = Config(actor=ActorConfig(**layout, sequence_parallel=True, fp8="blockwise", lora=LoRAConfig(rank=8)))
    found = shape(config, QWEN3_235B)
    small, large = read_architecture(found.architecture), read_architecture(QWEN3_235B)
    actor = found.config.actor
    assert layout_violations(found.architecture, actor.sizes()) == []
    assert found.sizes.world <= MOST_RANKS
    for name in layout:  # what is composed stays composed
        assert (getattr(actor, name) > 1) == (layout[name] > 1) or name.endswith("_stage")
    assert all(getattr(small, name) == getattr(large, name) for name in ("family", "tied", "qk_norm", "norm_topk"))
    assert (small.kv_heads < actor.tensor_parallel) == (large.kv_heads < config.actor.tensor_parallel)
    assert small.layers <= 8 and small.hidden <= 64 and 1 < small.experts_per_token < small.experts <= 8
    assert (actor.fp8, actor.lora.rank, found.config.model.dtype) == ("none", 0, "float32")
    assert f"layers 94 -> {small.layers}" in found.smaller
    assert "made smaller" in described(found)


def test_a_small_model_is_computed_as_it_is() -> None:
    small = QWEN3_235B | {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 64, "num_attention_heads": 4}
    small |= {"head_dim": 16, "num_experts": 8, "moe_intermediate_size": 32, "intermediate_size": 96}
    found = shape(Config(actor=ActorConfig(data_parallel=8, expert_parallel=8)), small)
    assert (found.architecture, found.smaller, found.sizes.expert) == (small, [], 8)


def test_what_cannot_be_compared_is_said() -> None:
    with pytest.raises(InputError, match=r"actor\.tensor_parallel=3 does not divide num_attention_heads=64"):
        shape(Config(actor=ActorConfig(tensor_parallel=3)), QWEN3_235B)


def test_the_worst_is_named() -> None:
    small = [Difference(kind, "a", 0, 1e-7) for kind in ("log-probs", "metrics", "gradients", "weights")]
    assert table(Comparison(small))[-1] == "The layout computes what one rank computes."
    large = [Difference("gradients", f"tensor {number}", 3, 0.5) for number in range(12)]
    lines = table(Comparison([*large, *small]))
    assert "5.0e-01 of the tensor's largest" in lines[3] and "tensor 0, rank 3" in lines[3]
    assert lines[-1].split() == ["gradients", "and", "2", "more", "of", "13"]
    assert table(Comparison([Difference("metrics", "loss", 0, float("inf")), *small]))[-1].endswith("loss, rank 0")
