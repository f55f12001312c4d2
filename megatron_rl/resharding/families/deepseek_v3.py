"""DeepSeek-V3 and R1: latent attention, dense layers first, shared experts, a router bias, prediction layers."""

from megatron_rl.resharding.families.decoder import (
    DENSE_MLP,
    EMBEDDINGS,
    EXPERTS,
    LATENT_ATTENTION,
    OUTPUT,
    ROUTER_BIAS,
    SHARED_EXPERTS,
    predictors,
)
from megatron_rl.resharding.families.table import Family

_LAYER = LATENT_ATTENTION + DENSE_MLP + EXPERTS + ROUTER_BIAS + SHARED_EXPERTS

DEEPSEEK_V3 = Family(
    "deepseek_v3",
    "DeepseekV3ForCausalLM",
    EMBEDDINGS + _LAYER + predictors(_LAYER) + OUTPUT,
    fixed={"attention_bias": (False, False), "moe_layer_freq": (1, 1)},
    defaults={"max_position_embeddings": 4096, "q_lora_rank": 1536, "n_shared_experts": 1},
    nullable=("num_key_value_heads", "head_dim", "q_lora_rank"),
    expert_keys=("num_local_experts", "n_routed_experts"),
    leading_dense=True,
)
