"""What is wrong with ``actor.megatron``. Imports no torch."""

import difflib
import os
from collections.abc import Mapping
from typing import Any

from megatron_rl.actor.config import ActorConfig
from megatron_rl.actor.megatron.fields import fields
from megatron_rl.actor.megatron.needs import lacks
from megatron_rl.actor.megatron.owned import (
    BALANCED,
    CHOICES,
    INSTEAD,
    LEAST,
    REFUSED,
    UNBALANCED,
    needs_its_attention,
    needs_transformer_engine,
)
from megatron_rl.system import machine

_ALLOWED = "NVTE_ALLOW_NONDETERMINISTIC_ALGO"
_LOCAL = "computes nothing in Megatron's own layers, which a model takes"


def check_megatron(config: ActorConfig, dtype: str) -> list[str]:
    """A sentence for each field that is unknown, of another type, set by another option, or without effect here."""
    if not config.megatron or not fields():  # without Megatron-Core check says that it is missing
        return []
    return [said for name, value in config.megatron.items() if (said := _violation(name, value, config, dtype))]


def check_memory(config: ActorConfig, dtype: str) -> list[str]:
    """What is wrong with the options of recomputation, gradients and the optimiser's state."""
    found = _recomputation(config, dtype) + _fp8_weights(config)
    if config.gradients != "float32" and dtype == "float32":
        found.append(
            f"actor.gradients={config.gradients} is for weights in bfloat16, and model.dtype is float32: leave it at "
            "float32."
        )
    if config.optimizer_on_host and (why := local_layers(dtype)):
        found.append(
            f"actor.optimizer_on_host={config.optimizer_on_host} keeps float32 weights and moments beside a GPU that "
            f"computes in bfloat16 with Transformer Engine, and the run is {why}: leave it at 0."
        )
    if config.moments != "float32" and config.optimizer_on_host:
        found.append(
            f"actor.moments={config.moments} is of Transformer Engine's optimiser, and actor.optimizer_on_host gives "
            "the state to torch's, which keeps float32: set one of them back."
        )
    elif config.moments != "float32" and dtype == "float32":
        found.append(
            f"actor.moments={config.moments} is for weights in bfloat16, and model.dtype is float32: leave it at "
            "float32."
        )
    elif config.moments != "float32" and (why := local_layers(dtype)):
        found.append(
            f"actor.moments={config.moments} needs Transformer Engine's optimiser, and the run is {why}: leave it at "
            "float32."
        )
    gathers = config.megatron.get("overlap_param_gather")
    if gathers and not config.megatron.get("overlap_grad_reduce"):
        found.append(
            "actor.megatron.overlap_param_gather overlaps nothing without overlap_grad_reduce, which cuts weights into "
            "buckets: set both."
        )
    if config.megatron.get("bucket_size") and not config.megatron.get("overlap_grad_reduce"):
        found.append(
            "actor.megatron.bucket_size does nothing without overlap_grad_reduce: gradients are summed in one piece. "
            "Set both, or leave it out."
        )
    if gathers and config.lora.rank:
        found.append(
            "actor.megatron.overlap_param_gather is not for adapters, which are merged into weights before the next "
            "forward pass gathers them: leave it out with actor.lora.rank."
        )
    return found


def _fp8_weights(config: ActorConfig) -> list[str]:
    """What FP8 weights do not go with: what writes weights past ``megatron.quantised``, or keeps none in float32."""
    if not config.fp8_weights:
        return []
    if config.fp8 not in ("tensorwise", "blockwise"):
        return [
            f"actor.fp8_weights=true needs actor.fp8=tensorwise or blockwise, whose numbers come back from bfloat16 as "
            f"they were; it is {config.fp8}: set one of them, or leave actor.fp8_weights false."
        ]
    others = {
        f"actor.lora.rank={config.lora.rank}": config.lora.rank > 0,
        "actor.freeze": bool(config.freeze),
        f"actor.optimizer_on_host={config.optimizer_on_host}": config.optimizer_on_host > 0,
        f"actor.moments={config.moments}": config.moments != "float32",
    }
    return [
        f"actor.fp8_weights=true does not go with {named}: leave one of them out."
        for named, given in others.items()
        if given
    ]


MODULES = ("core_attn", "layernorm", "mlp", "moe", "moe_act")  # of Megatron's, those that these models have


def _recomputation(config: ActorConfig, dtype: str) -> list[str]:
    found, default = [], ActorConfig()
    if config.recompute != "selective" and config.recompute_modules != default.recompute_modules:
        found.append("actor.recompute_modules does nothing without actor.recompute=selective: set that, or leave it.")
    if unknown := [name for name in config.recompute_modules if name not in MODULES]:
        found.append(f"actor.recompute_modules has {unknown[0]!r}; it can have {', '.join(MODULES)}.")
    for name in ("layernorm", "moe_act"):
        if name in config.recompute_modules and (why := local_layers(dtype)):
            found.append(f"actor.recompute_modules={name} needs Transformer Engine's layers, and the run is {why}.")
    if config.recompute == "selective" and not config.recompute_modules:
        found.append("actor.recompute=selective computes nothing anew without actor.recompute_modules: name some.")
    for name in ("recompute_method", "recompute_layers"):
        if config.recompute != "full" and (given := getattr(config, name)) != getattr(default, name):
            found.append(f"actor.{name}={given} does nothing without actor.recompute=full: set that, or leave it.")
    return found


def local_layers(dtype: str) -> str:
    """Why a model computes with Megatron's own layers and not with Transformer Engine's; empty where it does not."""
    if not machine.gpus():
        return "without a GPU"
    if dtype == "float32":
        return "in float32"
    if not machine.elsewhere() and machine.installed("transformer-engine") is None:
        return "without Transformer Engine"
    return ""


def _violation(name: str, value: Any, config: ActorConfig, dtype: str) -> str:
    key, known = f"actor.megatron.{name}", fields()
    if name not in known:
        version, near = machine.installed("megatron-core"), difflib.get_close_matches(name, known, 3, 0.6)
        rather = f"did you mean {' or '.join(near)}?" if near else "megatron.core's configurations list what there is."
        return (
            f"{key}: Megatron-Core {version} has no such field in its TransformerConfig, OptimizerConfig or "
            f"DistributedDataParallelConfig; {rather}"
        )
    if name in INSTEAD:
        return f"{key} cannot be given, for it is set by another option: use {INSTEAD[name]}."
    if name in REFUSED:
        return f"{key} cannot be given: {REFUSED[name]}."
    if not known[name].settable:
        return f"{key} cannot be given: it takes a function or an object, which an option cannot name."
    if not known[name].takes(value):
        return f"{key} is {_shown(value)}; it takes {known[name]}."
    if out := _out_of_range(name, value):
        return f"{key} is {_shown(value)}; {out}."
    if name == "moe_aux_loss_coeff" and "moe_router_load_balancing_type" not in config.megatron:
        return f"{key} does nothing without actor.megatron.moe_router_load_balancing_type: set that, or leave it out."
    if needs_transformer_engine(name) and (why := local_layers(dtype)):
        return f"{key} {_LOCAL} {why}: leave it out."
    if needs_its_attention(name) and config.attention == "torch":
        return f"{key} does nothing in torch's attention: leave it out, or set actor.attention=transformer_engine."
    if needed := lacks(name, config, dtype):
        return f"{key} is of use only with {needed}: set that, or leave it out."
    fused = not local_layers(dtype) and config.attention != "torch"
    if name == "deterministic_mode" and value and fused and os.environ.get(_ALLOWED, "1") != "0":
        return f"{key} needs {_ALLOWED}=0 in the environment, which Transformer Engine's attention reads: set it too."
    return ""


def _out_of_range(name: str, value: Any) -> str:
    """What a value, or one of a list's, can be; empty where it is that."""
    values = value if isinstance(value, list) else [value]
    if name == "moe_router_load_balancing_type" and (other := [each for each in values if each not in BALANCED]):
        why = f" ({other[0]}: {UNBALANCED[other[0]]})" if other[0] in UNBALANCED else ""
        return f"it can be {', '.join(BALANCED[:-1])} or {BALANCED[-1]}{why}"
    if name in CHOICES and (value not in CHOICES[name]):
        return f"it can be {', '.join(CHOICES[name][:-1])} or {CHOICES[name][-1]}"
    if name in LEAST and any(each is not None and each < LEAST[name] for each in values):
        return f"it must be {LEAST[name]} or more"
    return ""


def _shown(value: Any) -> str:
    """As it was written."""
    if isinstance(value, Mapping):
        return "a mapping"
    return {"None": "null", "True": "true", "False": "false"}.get(repr(value), repr(value))
