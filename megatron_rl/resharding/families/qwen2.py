"""Qwen2 and Qwen2.5: biases on query, key and value only."""

from megatron_rl.resharding.families.decoder import ATTENTION, DENSE_MLP, EMBEDDINGS, OUTPUT, QKV_BIASES
from megatron_rl.resharding.families.table import Family

QWEN2 = Family(
    "qwen2",
    "Qwen2ForCausalLM",
    EMBEDDINGS + ATTENTION + QKV_BIASES + DENSE_MLP + OUTPUT,
    defaults={"num_key_value_heads": 32, "max_position_embeddings": 32768, "use_sliding_window": False},
    nullable=("num_key_value_heads",),
)
