"""Qwen3 mixtures of experts: Qwen3's attention; some layers may be dense (``mlp_only_layers``)."""

from megatron_rl.resharding.families.decoder import ATTENTION, DENSE_MLP, EMBEDDINGS, EXPERTS, OUTPUT, QK_NORMS
from megatron_rl.resharding.families.table import Family

QWEN3_MOE = Family(
    "qwen3_moe",
    "Qwen3MoeForCausalLM",
    EMBEDDINGS + ATTENTION + QK_NORMS + DENSE_MLP + EXPERTS + OUTPUT,
    fixed={"attention_bias": (False, False)},
)
