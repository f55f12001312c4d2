"""Mistral 7B and its dense successors: Llama's tensors; a sliding window changes none of them."""

from megatron_rl.resharding.families.decoder import ATTENTION, DENSE_MLP, EMBEDDINGS, OUTPUT
from megatron_rl.resharding.families.table import Family

MISTRAL = Family(
    "mistral",
    "MistralForCausalLM",
    EMBEDDINGS + ATTENTION + DENSE_MLP + OUTPUT,
    defaults={"num_key_value_heads": 8, "max_position_embeddings": 131072},
    nullable=("head_dim",),
)
