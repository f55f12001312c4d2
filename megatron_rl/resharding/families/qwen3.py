"""Qwen3: no biases; queries and keys are normalised per head."""

from megatron_rl.resharding.families.decoder import ATTENTION, DENSE_MLP, EMBEDDINGS, OUTPUT, QK_NORMS
from megatron_rl.resharding.families.table import Family

QWEN3 = Family(
    "qwen3",
    "Qwen3ForCausalLM",
    EMBEDDINGS + ATTENTION + QK_NORMS + DENSE_MLP + OUTPUT,
    fixed={"attention_bias": (False, False)},
    defaults={
        "num_key_value_heads": 32,
        "head_dim": 128,
        "max_position_embeddings": 32768,
        "use_sliding_window": False,
    },
    nullable=("num_key_value_heads",),
)
