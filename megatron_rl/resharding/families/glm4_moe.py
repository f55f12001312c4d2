"""GLM-4.5 and 4.6: grouped-query attention with optional biases and norms, otherwise built as DeepSeek-V3 is."""

from dataclasses import replace

from megatron_rl.resharding.families.decoder import (
    ATTENTION,
    DENSE_MLP,
    EMBEDDINGS,
    EXPERTS,
    OUTPUT,
    QK_NORMS,
    QKV_BIASES,
    ROUTER_BIAS,
    SHARED_EXPERTS,
    predictors,
)
from megatron_rl.resharding.families.table import Family

_BIASES = tuple(replace(row, needs="attention_bias") for row in QKV_BIASES)
_NORMS = tuple(replace(row, needs="use_qk_norm") for row in QK_NORMS)
_LAYER = ATTENTION + _BIASES + _NORMS + DENSE_MLP + EXPERTS + ROUTER_BIAS + SHARED_EXPERTS

GLM4_MOE = Family(
    "glm4_moe",
    "Glm4MoeForCausalLM",
    EMBEDDINGS + _LAYER + predictors(_LAYER) + OUTPUT,
    defaults={
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "attention_bias": False,
        "use_qk_norm": False,
        "n_shared_experts": 1,
    },
    expert_keys=("num_local_experts", "n_routed_experts"),
    leading_dense=True,
)
