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
from megatron_rl.resharding.families.scalar import scalar_config, with_score
from megatron_rl.resharding.families.table import DEFAULTS, Family, dimensions, instances, scalar_head
from megatron_rl.resharding.layout import TensorSpec

FAMILIES = {f.model_type: f for f in (LLAMA, MISTRAL, QWEN2, QWEN3, QWEN3_MOE, DEEPSEEK_V3, GLM4_MOE)}
_SCALAR = {name: with_score(f) for name, f in FAMILIES.items()}
_DTYPES = ("bfloat16", "float16", "float32", "float8_e4m3fn")
_ALLOWED: dict[str, tuple[Any, ...]] = {  # options of every family -> what each may be where it is set
    "tie_word_embeddings": (True, False),
    "attention_bias": (True, False),
    "use_qk_norm": (True, False),
    "norm_topk_prob": (True, False),
    "dtype": _DTYPES,
    "torch_dtype": _DTYPES,
}


def family(hf_config: Mapping[str, Any]) -> Family:
    """The family of a config.json, by its ``model_type``; with a scalar head where config.json has one.

    Raises InputError for an unknown family, for an option whose tensors the family's table does not have, and for one
    that is none of what it may be, null included where transformers does not take it.
    """
    model_type = hf_config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise InputError(f"config.json has model_type={model_type!r}, which is no known family; known are {known}.")
    found = (_SCALAR if scalar_head(hf_config) else FAMILIES)[model_type]
    for key, (expected, absent) in found.fixed.items():
        if hf_config.get(key, absent) != expected:
            raise InputError(
                f"config.json has {key}={hf_config[key]!r}; {model_type} is supported with {expected!r} only."
            )
    for key, allowed in _ALLOWED.items():
        have = hf_config.get(key)
        if have is not None and not any(type(have) is type(value) and have == value for value in allowed):
            named = f"{', '.join(map(repr, allowed[:-1]))} or {allowed[-1]!r}"
            raise InputError(f"config.json has {key}={have!r}; it must be {named}.")
    for key in (*DEFAULTS, *found.defaults, *found.expert_keys):
        if key in hf_config and hf_config[key] is None and key not in found.nullable:
            raise InputError(
                f"config.json has {key}=null, which {model_type} cannot have: give it a value"
                f"{'' if key in found.expert_keys else ', or remove the key'}."
            )
    return found


def with_scalar_head(hf_config: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of the same decoder with a scalar head. Raises InputError for an unknown family."""
    return scalar_config(hf_config, family(hf_config).architecture)


def predictor_layers(hf_config: Mapping[str, Any]) -> range:
    """The numbers of the multi-token prediction layers, which follow the decoder's."""
    found = family(hf_config)
    if not found.predicts:
        return range(0)
    sizes = dimensions(found, hf_config)
    return range(sizes["layers"], sizes["layers"] + sizes["predictors"])


def canonical_tensors(hf_config: Mapping[str, Any]) -> dict[str, TensorSpec]:
    """Every Hugging Face tensor of the model, in the order of the forward pass. A tied head is not a tensor."""
    return {name: spec for instance in instances(family(hf_config), hf_config) for name, spec in instance.parts.items()}
