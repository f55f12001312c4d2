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
    leading_dense=True,
)
