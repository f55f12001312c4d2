"""Qwen3 mixtures of experts: Qwen3's attention; some layers may be dense (``mlp_only_layers``)."""

from megatron_rl.resharding.families.decoder import ATTENTION, DENSE_MLP, EMBEDDINGS, EXPERTS, OUTPUT, QK_NORMS
from megatron_rl.resharding.families.table import Family

QWEN3_MOE = Family(
    "qwen3_moe",
    "Qwen3MoeForCausalLM",
    EMBEDDINGS + ATTENTION + QK_NORMS + DENSE_MLP + EXPERTS + OUTPUT,
    fixed={"attention_bias": (False, False)},
    defaults={
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "use_sliding_window": False,
        "decoder_sparse_step": 1,
        "norm_topk_prob": False,
    },
    expert_keys=("num_local_experts", "num_experts"),  # transformers 5 renames what the hub calls num_experts
)
