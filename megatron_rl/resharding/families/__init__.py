"""Model families: one table of names each."""

from collections.abc import Mapping
from typing import Any

from megatron_rl.errors import InputError
from megatron_rl.resharding.families.deepseek_v3 import DEEPSEEK_V3
from megatron_rl.resharding.families.glm4_moe import GLM4_MOE
from megatron_rl.resharding.families.llama import LLAMA
from megatron_rl.resharding.families.mistral import MISTRAL
from megatron_rl.resharding.families.qwen2 import QWEN2
from megatron_rl.resharding.families.qwen3 import QWEN3
from megatron_rl.resharding.families.qwen3_moe import QWEN3_MOE
from megatron_rl.resharding.families.table import Family, instances
from megatron_rl.resharding.layout import TensorSpec

FAMILIES = {f.model_type: f for f in (LLAMA, MISTRAL, QWEN2, QWEN3, QWEN3_MOE, DEEPSEEK_V3, GLM4_MOE)}


def family(hf_config: Mapping[str, Any]) -> Family:
    """The family of a config.json, by its ``model_type``.

    Raises InputError for an unknown family, or for an option whose tensors the family's table does not have.
    """
    model_type = hf_config.get("model_type")
    if model_type not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise InputError(f"config.json has model_type={model_type!r}, which is no known family; known are {known}.")
    found = FAMILIES[model_type]
    for key, (expected, absent) in found.fixed.items():
        if hf_config.get(key, absent) != expected:
            raise InputError(
                f"config.json has {key}={hf_config[key]!r}; {model_type} is supported with {expected!r} only."
            )
    return found


def canonical_tensors(hf_config: Mapping[str, Any]) -> dict[str, TensorSpec]:
    """Every Hugging Face tensor of the model, in the order of the forward pass. A tied head is not a tensor."""
    return {name: spec for instance in instances(family(hf_config), hf_config) for name, spec in instance.parts.items()}
