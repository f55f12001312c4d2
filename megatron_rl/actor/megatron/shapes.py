"""Sizes of a model that options of precision and recomputation do not go with. Imports no torch."""

import math
from collections import Counter
from dataclasses import replace

from megatron_rl.actor.config import ActorConfig
from megatron_rl.actor.megatron.owned import FOR_EXPERTS
from megatron_rl.resharding.families.architecture import Architecture
from megatron_rl.resharding.layouts.megatron import layer_places

BLOCK = {"delayed": 16, "tensorwise": 16, "blockwise": 16, "mxfp8": 32}  # FP8 products take multiples of so many
UNIFIED = 128  # rows and columns of a block with one scale in the engines' FP8, and in Transformer Engine's blockwise


def check_shapes(config: ActorConfig, arch: Architecture) -> list[str]:
    """A sentence for each, of a model that can be sharded as configured."""
    found = _blocks(config, arch) + _bf16_layers(config, arch) + _recomputed(config, arch) + _experts(config, arch)
    found += _parts(config, arch)
    if config.fp8_weights and arch.experts:
        found.append(
            "actor.fp8_weights=true is for dense models, and this one is a mixture of experts: leave it false."
        )
    return found


def widths(config: ActorConfig, arch: Architecture) -> dict[str, int]:
    """Rows and columns of the layers' matrices on a rank, by what they are called."""
    tensor, sizes = config.tensor_parallel, arch
    found = {
        "hidden_size": sizes.hidden,
        "the queries of a rank (num_attention_heads x head_dim / actor.tensor_parallel)": sizes.heads
        * sizes.head_dim
        // tensor,
        "queries, keys and values of a rank": (sizes.heads + 2 * sizes.kv_heads) * sizes.head_dim // tensor,
    }
    if arch.experts:
        named = "moe_intermediate_size / actor.expert_tensor_parallel"
        return found | {named: sizes.expert_hidden // config.expert_tensor_parallel}
    return found | {"intermediate_size / actor.tensor_parallel": sizes.mlp_hidden // tensor}


def _blocks(config: ActorConfig, arch: Architecture) -> list[str]:
    block = BLOCK.get(config.fp8, 1)
    wrong = [f"{named} is {width}" for named, width in widths(config, arch).items() if width % block]
    if not wrong:
        return []
    whole = widths(replace(config, tensor_parallel=1, expert_tensor_parallel=1), arch).values()
    cures = [] if any(width % block for width in whole) else ["lower the parallel size"]
    if block > 16 and not any(width % 16 for width in widths(config, arch).values()):
        cures.append("use actor.fp8=tensorwise")
    if not cures and block > 16 and not any(width % 16 for width in whole):
        cures = ["lower the parallel size and use actor.fp8=tensorwise"]
    cure = ", or ".join(cures or ["no parallel size changes that; use actor.fp8=none"])
    return [f"actor.fp8={config.fp8} multiplies in blocks of {block}, and {wrong[0]}: {cure}."]


def _bf16_layers(config: ActorConfig, arch: Architecture) -> list[str]:
    count = config.bf16_layers
    if not count:
        return []
    if config.fp8 == "none":
        return [f"actor.bf16_layers={count} does nothing without actor.fp8: all layers are in bfloat16; leave it at 0."]
    if config.fp8 == "delayed":
        return [
            f"actor.bf16_layers={count} does not go with actor.fp8=delayed, whose scales are kept over all layers: use "
            "tensorwise, blockwise or mxfp8, or leave it at 0."
        ]
    if count > (most := min(arch.layers // config.pipeline_parallel, (arch.layers - 1) // 2)):
        none = ", which leaves none in FP8" if 2 * count >= arch.layers else ""
        stages = f" in {config.pipeline_parallel} pipeline stages" if config.pipeline_parallel > 1 else ""
        return [
            f"actor.bf16_layers={count} keeps so many first and so many last layers in bfloat16, and there are "
            f"{arch.layers}{stages}{none}: it can be {most} at most."
        ]
    return []


def _experts(config: ActorConfig, arch: Architecture) -> list[str]:
    """Megatron's fields of experts, of a model that has none."""
    named = [] if arch.experts else [n for n in config.megatron if "moe_" in n or n in FOR_EXPERTS]
    found = [f"actor.megatron.{name} does nothing, for the model has no experts: leave it out." for name in named]
    return found + _offloaded(config, arch)


def _offloaded(config: ActorConfig, arch: Architecture) -> list[str]:
    """Of ``offload_modules``, those that layers do not have (``gpt_layer_specs``: Transformer Engine's)."""
    given = config.megatron.get("offload_modules")
    key, found = "actor.megatron.offload_modules", []
    for name in given if isinstance(given, list) else []:
        if name in ("expert_fc1", "moe_act") and not arch.experts:
            found.append(f"{key} has {name}, and the model is no mixture of experts: leave it out.")
        if name == "attn_norm" or (name == "mlp_norm" and not arch.experts):
            layer = "linear_qkv" if name == "attn_norm" else "linear_fc1"
            found.append(f"{key} has {name}, which is no module of its own here, but a part of {layer}: leave it out.")
    return found


def _parts(config: ActorConfig, arch: Architecture) -> list[str]:
    """Megatron's fields that want heads, an MLP or norms that a model may not have."""
    found, ranks = [], config.context_parallel
    heads = max(1, arch.kv_heads // config.tensor_parallel)
    if config.megatron.get("cp_comm_type") == "a2a" and heads % ranks:
        found.append(
            f"actor.megatron.cp_comm_type=a2a gives each of {ranks} ranks (actor.context_parallel) some of the heads, "
            f"and {heads} of keys and values on a tensor-parallel rank cannot be divided so: use p2p or all_gather."
        )
    if arch.experts and "mlp_chunks_for_training" in config.megatron:
        found.append(
            "actor.megatron.mlp_chunks_for_training cuts tokens apart from their routing, and the model has experts: "
            "leave it out."
        )
    if not arch.qk_norm and "apply_wd_to_qk_layernorm" in config.megatron:
        found.append(
            "actor.megatron.apply_wd_to_qk_layernorm does nothing, for the model has no norms of queries and keys: "
            "leave it out."
        )
    return found


def _recomputed(config: ActorConfig, arch: Architecture) -> list[str]:
    if config.recompute == "selective":
        return _modules(config, arch)
    if config.recompute != "full":
        return []
    places = layer_places(arch.layers, config.sizes())
    chunks = set(Counter((stage, chunk) for stage, chunk, _ in places).values())
    count = config.recompute_layers
    if config.recompute_method == "block" and count > max(chunks):
        return [
            f"actor.recompute_layers={count}: a pipeline stage's model chunk has {max(chunks)} layers; lower it, or "
            "use actor.recompute_method=uniform, which computes all of them anew."
        ]
    if config.recompute_method == "uniform" and (odd := [size for size in chunks if size % count]):
        least = math.gcd(*chunks)
        fitting = [str(n) for n in range(1, least + 1) if least % n == 0]
        all_of = f"it can be {', '.join(fitting[:-1])} or {fitting[-1]}" if fitting[1:] else "it can be 1"
        return [
            f"actor.recompute_layers={count} does not divide the {odd[0]} layers of a pipeline stage's chunk: {all_of}."
        ]
    return []


def _modules(config: ActorConfig, arch: Architecture) -> list[str]:
    found = []
    for name in config.recompute_modules:
        if name in ("moe", "moe_act") and not arch.experts:
            found.append(f"actor.recompute_modules has {name}, and the model is no mixture of experts: leave it out.")
        if name == "layernorm" and not arch.experts:
            found.append(
                "actor.recompute_modules has layernorm, and the norms of a dense model are parts of the products after "
                "them, so that nothing is computed anew: leave it out."
            )
        if name == "mlp" and arch.experts:
            found.append("actor.recompute_modules has mlp, and the model's are experts: name moe instead.")
        if config.fp8 == "delayed" and name in ("layernorm", "moe_act"):
            found.append(f"actor.recompute_modules={name} does not go with actor.fp8=delayed: use tensorwise.")
    return found
