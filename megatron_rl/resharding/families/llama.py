"""Llama 3.x: no biases, no query and key norms; small ones tie the head to the embedding."""

from megatron_rl.resharding.families.decoder import ATTENTION, DENSE_MLP, EMBEDDINGS, OUTPUT
from megatron_rl.resharding.families.table import Family

LLAMA = Family(
    "llama",
    "LlamaForCausalLM",
    EMBEDDINGS + ATTENTION + DENSE_MLP + OUTPUT,
    fixed={"attention_bias": (False, False), "mlp_bias": (False, False)},
    defaults={"max_position_embeddings": 2048},
    nullable=("num_key_value_heads", "head_dim"),
)
