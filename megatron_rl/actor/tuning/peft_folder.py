"""Adapters as a folder that PEFT loads, beside the model that they began from.

Megatron's linear_qkv and linear_fc1 are several matrices of Hugging Face's: these share A, and each has its rows of B.
"""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
from megatron.core import parallel_state
from safetensors.torch import save_file

from megatron_rl.actor import groups
from megatron_rl.actor.trainer import Actor
from megatron_rl.actor.tuning.names import Target, module
from megatron_rl.resharding.families.table import Kind
from megatron_rl.resharding.layout import TensorSpec
from megatron_rl.resharding.layouts.megatron import split
from megatron_rl.system.files import write_text

Pair = tuple[torch.Tensor, torch.Tensor]  # A [rank, in] and B [out, rank]


def whole_adapters(actor: Actor) -> dict[str, Pair]:
    """Hugging Face module -> its A and B, float32, on rank 0; empty on the others. Collective."""
    replica = parallel_state.get_data_parallel_rank(with_context_parallel=True)
    mine = [(a.target, a.group.rank(), *map(_copy, (a.a, a.b))) for a in actor.adapters if replica == 0]
    found: dict[str, list[tuple[Target, int, torch.Tensor, torch.Tensor]]] = {}
    for shard in (shard for held in groups.gather(mine) for shard in held):
        found.setdefault(shard[0].name, []).append(shard)
    whole: dict[str, Pair] = {}
    for shards in found.values():
        target, pairs = shards[0][0], [(a, b) for _, _, a, b in sorted(shards, key=lambda shard: shard[1])]
        whole |= {module(part): pair for part, pair in joined(target, pairs).items()}
    return whole


def _copy(parameter: torch.nn.Parameter) -> torch.Tensor:
    return parameter.data.to("cpu", copy=True)  # alone in its storage


def joined(target: Target, pairs: list[Pair]) -> dict[str, Pair]:
    """Hugging Face tensor -> its A and B, of all tensor-parallel ranks' parts."""
    if target.kind is Kind.ROW:
        [part] = target.parts
        return {part: (torch.cat([a for a, _ in pairs], 1), pairs[0][1])}
    a, rank = pairs[0][0], pairs[0][0].shape[0]
    parts = [TensorSpec((spec.shape[0], rank), (*spec.index[:-1], rank)) for spec in target.parts.values()]
    whole = [torch.empty(part.index) for part in parts]
    for index, (_, b) in enumerate(pairs):
        _, boxes, _ = split(target.kind, tuple(parts), len(pairs), index)  # B's rows lie as the matrix's do
        for number, start, shape, offset, strides in boxes:
            there = tuple(slice(first, first + count) for first, count in zip(start, shape, strict=True))
            whole[number][there] = b.as_strided(shape, strides, offset)
    return {name: (a, b.view(part.shape)) for name, b, part in zip(target.parts, whole, parts, strict=True)}


def write_adapter(actor: Actor, folder: Path) -> None:
    """Write the adapters into a new folder; collective."""
    adapters = whole_adapters(actor)
    if not groups.first():
        return
    config = actor.config.lora
    description = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(actor.model_folder.absolute()),
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": _short(adapters, actor.arch.layers),
    }
    tensors = {}
    for name, (a, b) in adapters.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = a.clone()  # those that share it each have their own
        tensors[f"base_model.model.{name}.lora_B.weight"] = b.contiguous()
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    write_text(folder / "adapter_config.json", json.dumps(description, indent=2) + "\n")


def _short(names: Iterable[str], layers: int) -> list[str]:
    """Modules by their last words, as servers of adapters know them, where all layers have the same; else whole."""
    count = Counter(name.rpartition(".")[2] for name in names)
    return sorted(count if all(n == layers for n in count.values()) else names)
