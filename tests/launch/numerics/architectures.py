"""Small config.json of the kinds that a layout can be of."""

from typing import Any

_SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 99,  # tensor parallelism pads it
    "max_position_embeddings": 128,
    "rope_theta": 10000.0,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "tied": _SIZES | {"head_dim": 24, "model_type": "qwen3", "tie_word_embeddings": True},
    "untied": _SIZES | {"model_type": "qwen2", "tie_word_embeddings": False},
    "moe": _SIZES
    | {
        "model_type": "qwen3_moe",
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 48,
        "norm_topk_prob": True,
        "tie_word_embeddings": False,
    },
}
