"""Where `transformers` keeps the canonical tensors: its modules' parameters, and its safetensors files."""

from collections.abc import Mapping
from math import prod
from typing import Any

from megatron_rl.resharding.families import canonical_tensors, family
from megatron_rl.resharding.families.table import dimensions, instances
from megatron_rl.resharding.layout import Layout, Segment, Shard, TensorSpec, row_major


def whole(name: str, spec: TensorSpec, local: str = "") -> Segment:
    """A canonical tensor that lies whole and contiguous in a local tensor, by default of the same name."""
    return Segment(name, (0,) * len(spec.index), spec.index, local or name, 0, row_major(spec.index))


def files_layout(hf_config: Mapping[str, Any], copies: Mapping[str, str] | None = None) -> Layout:
    """One rank that holds every canonical tensor as a checkpoint on the hub stores it.

    ``copies``: tensors that it stores a second time, by the second name.
    """
    tensors = canonical_tensors(hf_config)
    stored = {name: name for name in tensors} | dict(copies or {})
    segments = tuple(whole(name, tensors[name], local) for local, name in stored.items())
    return Layout(tensors, (Shard({local: tensors[name].shape for local, name in stored.items()}, segments),))


def transformers_layout(hf_config: Mapping[str, Any]) -> Layout:
    """One rank that holds transformers' (version 5) AutoModelForCausalLM, by named_parameters() and named_buffers().

    Experts are stacked into one parameter per layer and projection: gate_up_proj [experts, 2 x expert_mlp, hidden],
    down_proj [experts, hidden, expert_mlp]. A tied head is no parameter of its own. Multi-token prediction layers are
    no part of these modules and declared unused.
    """
    found = family(hf_config)
    numbers = dimensions(found, hf_config)
    layers, experts = numbers["layers"], numbers["experts"]
    shapes: dict[str, tuple[int, ...]] = {}
    segments: list[Segment] = []
    unused: set[str] = set()
    for instance in instances(found, hf_config):
        if instance.layer >= layers:
            unused.update(instance.parts)
            continue
        if not instance.row.stacked:
            segments += (whole(name, spec) for name, spec in instance.parts.items())
            shapes |= {name: spec.shape for name, spec in instance.parts.items()}
            continue
        local = instance.name(instance.row.stacked)
        specs = list(instance.parts.values())
        shapes[local] = (experts, sum(spec.shape[0] for spec in specs), *specs[0].shape[1:])
        offset = instance.expert * prod(shapes[local][1:])
        for name, spec in instance.parts.items():
            segments.append(Segment(name, (0,) * len(spec.index), spec.index, local, offset, row_major(spec.index)))
            offset += spec.elements
    return Layout(canonical_tensors(hf_config), (Shard(shapes, tuple(segments)),), frozenset(unused))
