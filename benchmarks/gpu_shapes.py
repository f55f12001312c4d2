"""The models whose shapes benchmarks take, as config.json has them."""

from typing import Any

COMMON: dict[str, Any] = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "num_key_value_heads": 8,
    "num_attention_heads": 32,
    "head_dim": 128,
    "vocab_size": 151936,
    "num_hidden_layers": 36,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "max_position_embeddings": 40960,
}
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-4b": COMMON | {"hidden_size": 2560, "intermediate_size": 9728, "tie_word_embeddings": True},
    "qwen3-8b": COMMON | {"hidden_size": 4096, "intermediate_size": 12288, "tie_word_embeddings": False},
    "tiny": COMMON
    | {
        **{"hidden_size": 64, "intermediate_size": 128, "tie_word_embeddings": True, "vocab_size": 512},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "num_hidden_layers": 2},
    },
}
