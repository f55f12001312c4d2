"""Which parameters of a rank are trained: some are frozen, or all are, and linear layers get adapters."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from megatron_rl.actor.config import ActorConfig
from megatron_rl.actor.tuning.lora import Adapter, Adapters
from megatron_rl.actor.tuning.names import frozen_tensors, targets
from megatron_rl.resharding.families import canonical_tensors
from megatron_rl.resharding.layouts.megatron import megatron_layout

ADAPTERS = "adapters"  # the module of a chunk that holds them
_ALIGNED = 64  # bytes at whose multiples parameters begin


def restrict(
    chunks: list[Any], hf_config: Mapping[str, Any], config: ActorConfig, seed: int, transformer_engine: bool
) -> list[Adapter]:
    """Freeze parameters as ``actor.freeze`` or ``actor.lora`` say, and return this rank's adapters.

    Done before parameters are filled and before they get their gradients' buffers, of which frozen ones have none.
    """
    lora = config.lora
    if not lora.rank and not config.freeze:
        return []
    held = _held(hf_config, config, transformer_engine)
    frozen = frozenset(canonical_tensors(hf_config)) if lora.rank else frozen_tensors(hf_config, config.freeze)
    adapted = {frozenset(t.parts): t for t in targets(hf_config, lora.targets)} if lora.rank else {}
    adapters = []
    for number, chunk in enumerate(chunks):
        still = []
        for name, parameter in chunk.named_parameters():
            if held[f"{number}/{name}"] <= frozen:
                parameter.requires_grad = False
                still.append(parameter)
        _pack(still)
        mine = [
            Adapter(target, chunk.get_submodule(name.removesuffix(".weight")), lora, seed, config.sequence_parallel)
            for name, _ in chunk.named_parameters()
            if (target := adapted.get(held[f"{number}/{name}"]))
        ]
        if mine:
            chunk.add_module(ADAPTERS, Adapters(mine))
            adapters += mine
        if chunk.pre_process and config.recompute == "full":
            chunk.embedding.register_forward_hook(_with_gradient)
    return adapters


def _held(hf_config: Mapping[str, Any], config: ActorConfig, transformer_engine: bool) -> dict[str, frozenset[str]]:
    """The Hugging Face tensors in each of this rank's parameters, by local name."""
    sizes, rank = config.sizes(), dist.get_rank()
    ranks = megatron_layout(hf_config, sizes, fused_norms=transformer_engine, grouped_experts=transformer_engine).ranks
    stage = rank // sizes.stage * sizes.stage
    found: dict[str, set[str]] = {}
    for shard in (ranks[rank], *ranks[stage : stage + sizes.stage]):
        missing = shard.locals.keys() - found.keys()  # on this rank they are nothing but padding
        for segment in shard.segments:
            if segment.local in missing:
                found.setdefault(segment.local, set()).add(segment.tensor)
    return {local: frozenset(tensors) for local, tensors in found.items()}


def _pack(parameters: list[torch.nn.Parameter]) -> None:
    """Have them lie in one storage for each dtype, as those that are trained do: engines open few files."""
    room: Counter[torch.dtype] = Counter()
    starts = []
    for p in parameters:
        starts.append(room[p.dtype])
        whole = _ALIGNED // p.element_size()
        room[p.dtype] += -(-p.numel() // whole) * whole
    buffers = {dtype: torch.empty(count, dtype=dtype, device=parameters[0].device) for dtype, count in room.items()}
    for p, start in zip(parameters, starts, strict=True):
        p.data = buffers[p.dtype][start : start + p.numel()].view(p.shape).copy_(p.data)


def _with_gradient(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    """Let the embedding's result have a gradient: layers that are computed anew in the backward pass are passed over
    where nothing that they are given has one."""
    return output.requires_grad_() if torch.is_grad_enabled() and not output.requires_grad else output
