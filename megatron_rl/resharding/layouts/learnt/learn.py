"""Learn where a model keeps the canonical tensors, from the model's own ``load_weights``.

The loader is given meta tensors, which have shapes and no memory, under a dispatch mode (``tracing``) that notes every
copy and executes none: which view of which canonical tensor goes into which view of which parameter. In flat
coordinates slices, transposes and heads are all offsets and strides, so no loader needs code of its own.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import xxhash

from megatron_rl.errors import InputError
from megatron_rl.resharding.layout import Layout, Padding, Segment, Shard, TensorSpec, row_major
from megatron_rl.resharding.layouts.learnt.holders import Box, Holder
from megatron_rl.resharding.layouts.learnt.tracing import ADVICE, Memory, Trace, held_tensors, unchanged
from megatron_rl.resharding.layouts.learnt.views import pieces
from megatron_rl.resharding.proof import check_layout, intervals


@dataclass(frozen=True)
class Learnt:
    """One engine worker's layout and the memory that it describes."""

    shard: Shard  # segments and padding of every parameter, and of buffers and derived tensors that the loader fills
    parameters: dict[str, torch.Tensor]  # local name -> its live memory as a contiguous tensor of the shard's shape
    unread: frozenset[str]  # canonical tensors that the loader put nowhere: other ranks', other stages'


def learn(
    model: torch.nn.Module,
    load: Callable[[Iterable[tuple[str, torch.Tensor]]], Any],
    tensors: Mapping[str, TensorSpec],
    dtype: torch.dtype,
) -> Learnt:
    """Trace ``load`` (the model's ``load_weights``), which is offered every canonical tensor once, in order.

    ``dtype`` is that of tensors whose spec names none. The model must be loaded: what it keeps is neither executed on
    nor changed. A parameter under several names, or inside another one's memory, has the first one's.

    Raises InputError naming the parameter and the tensor when something other than copying happens to a weight, when
    elements of a parameter are left out, or when the loader replaces a parameter.
    """
    memory = Memory(model)
    sources = {}
    for name, spec in tensors.items():
        kind = getattr(torch, spec.dtype) if spec.dtype else dtype
        sources[name] = torch.empty(spec.shape, dtype=kind, device="meta")
        memory.offer(name, sources[name])
    trace = Trace(memory)

    def offered() -> Iterable[tuple[str, torch.Tensor]]:
        for name, tensor in sources.items():
            trace.current = name
            yield name, tensor

    with unchanged(model), torch.no_grad(), trace:
        load(offered())
    return _collect(memory, tensors, {name: source.dtype for name, source in sources.items()})


def _collect(memory: Memory, tensors: Mapping[str, TensorSpec], dtypes: Mapping[str, torch.dtype]) -> Learnt:
    shapes: dict[str, tuple[int, ...]] = {}
    segments: list[Segment] = []
    padding: list[Padding] = []
    parameters: dict[str, torch.Tensor] = {}
    for holder, tensor in memory.kept():
        boxes = holder.boxes()
        if not boxes and not isinstance(tensor, torch.nn.Parameter):
            continue  # cos_sin_cache and the like
        if holder.missing:
            raise InputError(
                f"The model's own load_weights leaves {holder.missing} of {tensor.numel()} elements of {holder.name} "
                f"{list(tensor.shape)} as they were: no canonical tensor reaches them. {ADVICE}"
            )
        shapes[holder.name] = holder.index
        parameters[holder.name] = tensor.detach().as_strided(holder.index, row_major(holder.index))
        found = []
        for box in boxes:
            if box.tensor:
                _check_dtypes(holder, box, dtypes)
                found += _segments(holder, box, tensors[box.tensor])
            else:
                padding += _padding(holder, box)
        segments += sorted(found, key=lambda s: s.offset)
    shard = Shard(shapes, tuple(segments), tuple(padding))
    check_layout(Layout(dict(tensors), (shard,)))
    return Learnt(shard, parameters, frozenset(tensors) - {s.tensor for s in segments})


def _flat(holder: Holder, box: Box) -> int:
    return sum(i * s for i, s in zip(box.start, row_major(holder.index), strict=True))


def _segments(holder: Holder, box: Box, spec: TensorSpec) -> list[Segment]:
    found = pieces(spec.index, box.offset, box.shape, box.steps, _flat(holder, box), row_major(holder.index))
    return [Segment(box.tensor, p.start, p.shape, holder.name, p.offset, p.strides) for p in found]


def _padding(holder: Holder, box: Box) -> list[Padding]:
    dims = [(step, n) for step, n in zip(row_major(holder.index), box.shape, strict=True) if n > 1]
    return [Padding(holder.name, int(low), int(high - low)) for low, high in intervals(_flat(holder, box), dims)]


def _exact(narrow: torch.dtype, wide: torch.dtype) -> bool:
    """True when every number of the one dtype is one of the other."""
    if narrow == wide:
        return True
    if not (narrow.is_floating_point and wide.is_floating_point):
        return False
    a, b = torch.finfo(narrow), torch.finfo(wide)
    return a.max <= b.max and a.eps >= b.eps and a.smallest_normal >= b.smallest_normal


def _check_dtypes(holder: Holder, box: Box, dtypes: Mapping[str, torch.dtype]) -> None:
    """A copy rounds once, from the tensor's dtype to the parameter's; a loader that rounds in between is another."""
    for through in box.through - {holder.dtype}:
        if not _exact(dtypes[box.tensor], through):
            raise InputError(
                f"The model's own load_weights rounds {box.tensor} to {through} on its way into {holder.name}, which "
                f"is {holder.dtype}. {ADVICE}"
            )


def fingerprint(model: torch.nn.Module, learnt: Iterable[str] = ()) -> str:
    """xxh3-128 (32 hexadecimal digits) of where the model's weights lie: name, address, shape, strides and dtype.

    It covers every parameter and what else ``learnt`` names (the keys of ``Learnt.parameters``). While it stays the
    same, so does what ``learn`` found.
    """
    names = set(learnt)
    state = xxhash.xxh3_128()
    for name, tensor in held_tensors(model):
        if name in names or isinstance(tensor, torch.nn.Parameter):
            place = (name, tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), str(tensor.dtype))
            state.update(repr(place).encode())
    return state.hexdigest()
