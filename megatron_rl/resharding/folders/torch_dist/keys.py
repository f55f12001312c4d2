"""Which canonical tensors lie in which global tensor of a torch_dist checkpoint, and in which rectangle of a chunk.

Names are those of megatron-core 0.16's and 0.19's ``sharded_state_dict``: a decoder of layers that are alike stores
each weight of all layers as one tensor [layers, ...], any other has one per layer; experts are stacked behind the
layer. A chunk is a box of such a tensor. Imports no torch.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

from megatron_rl.resharding.families import family
from megatron_rl.resharding.families.table import Instance, Kind, Row, dimensions, expert_layer, instances
from megatron_rl.resharding.layout import Padding, Segment, TensorSpec
from megatron_rl.resharding.layouts.megatron import Box, split

Ints = tuple[int, ...]
_DECODER, _PREDICTOR = "decoder.layers.{layer}.", "mtp.layers.{layer}."
# What megatron.core.models.gpt.gpt_layer_specs calls these norms where Transformer Engine's layers do not fuse them.
_LOCAL_NORMS = {
    "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
    "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
}
# Tensors of Megatron's that no Hugging Face model has, by their names' ends, and what they say of the model.
NOT_OF_HF = {
    "self_attention.linear_q_proj.layer_norm_weight": (
        "Megatron-Core 0.19 with Transformer Engine's layers normalises what queries are projected from once more "
        "where q_lora_rank is null and qk_layernorm is set (megatron.core.transformer.mla_qk_norm_config), which "
        "Hugging Face's model does not: the two compute different numbers, and no conversion makes one of the other"
    )
}


@dataclass(frozen=True)
class Position:
    """A row of the family's table at one place: the keys that may name it, and its index among what they stack."""

    instance: Instance
    keys: tuple[str, ...]
    index: Ints
    stack: Ints  # sizes of the stacked dimensions

    @property
    def kind(self) -> Kind:
        """How its chunks are cut; latent attention's down-projections stay whole, as Transformer Engine has them."""
        return self.instance.row.te_kind or self.instance.row.kind

    @property
    def parts(self) -> tuple[TensorSpec, ...]:
        return tuple(self.instance.parts.values())

    @property
    def whole(self) -> Ints:
        """Shape of the matrix at this place, without padding."""
        return split(self.kind, self.parts, 1, 0)[0]

    @property
    def padded(self) -> bool:
        """True when a checkpoint may hold more rows than the model has."""
        return self.kind is Kind.VOCABULARY


def _patterns(row: Row, latent: bool) -> tuple[str, ...]:
    """Megatron's names of a row: with Transformer Engine's layers, and with its own (other for latent attention)."""
    own = row.megatron
    for norm, fused in _LOCAL_NORMS.items():
        if own.endswith("." + norm) and not latent:
            own = own.removesuffix(norm) + fused
    return tuple(dict.fromkeys((row.fused_norm or row.megatron, own)))


def stacked_layers(hf_config: Mapping[str, Any]) -> bool:
    """True when the decoder's layers are all alike, so that Megatron stacks them."""
    found = family(hf_config)
    count = dimensions(found, hf_config)["layers"]
    return len({expert_layer(found, hf_config, layer) for layer in range(count)}) == 1


def positions(hf_config: Mapping[str, Any], stacked: bool) -> list[Position]:
    """Every row at every layer and expert, in the order of the forward pass; the first key is the one to prefer."""
    found = family(hf_config)
    sizes = dimensions(found, hf_config)
    return [_position(instance, sizes, stacked) for instance in instances(found, hf_config)]


def _position(instance: Instance, sizes: dict[str, int], stacked: bool) -> Position:
    layer = instance.layer
    index: Ints = ()
    stack: Ints = ()
    if stacked and instance.row.megatron.startswith(_DECODER):
        index, stack = (layer,), (sizes["layers"],)
    if instance.row.megatron.startswith(_PREDICTOR):
        layer -= sizes["layers"]
    if instance.row.per_expert:
        index, stack = (*index, instance.expert), (*stack, sizes["experts"])
    keys = []
    for pattern in _patterns(instance.row, latent="kv_lora" in sizes):
        pattern = pattern.replace(".local_experts.{expert}.", ".experts.")
        pattern = pattern.replace(_DECODER, "decoder.layers.") if stacked else pattern
        keys.append(instance.name(pattern, layer))
    return Position(instance, tuple(keys), index, stack)


@dataclass(frozen=True)
class Rectangle:
    """Rows and columns of a row's global matrix (a vector has one column)."""

    row: int
    column: int
    shape: Ints  # of the chunk, without the stacked dimensions

    @property
    def start(self) -> Ints:
        return (self.row, self.column)[: len(self.shape)]


@cache
def rectangles(kind: Kind, parts: tuple[TensorSpec, ...], ways: int) -> tuple[tuple[int, Rectangle], ...]:
    """(tensor-parallel rank, chunk) for every chunk that ``ways`` ranks write of a row."""
    whole, _, _ = split(kind, parts, 1, 0)
    found: list[tuple[int, Rectangle]] = []
    for rank in range(ways):
        shape, boxes, _ = split(kind, parts, ways, rank)
        if kind is Kind.COPY:
            return ((0, Rectangle(0, 0, whole)),)
        if kind is Kind.ROW:
            found.append((rank, Rectangle(0, rank * shape[1], shape)))
        elif kind is Kind.COLUMN:  # all gates stand before all ups, so each is a chunk
            top = 0
            for part, start, extent, _, _ in boxes:
                found.append((rank, Rectangle(top + start[0], 0, extent)))
                top += parts[part].shape[0]
        else:
            found.append((rank, Rectangle(rank * shape[0], 0, shape)))
    return tuple(found)


@cache
def global_shape(kind: Kind, parts: tuple[TensorSpec, ...], ways: int) -> Ints:
    """Shape of a row's global matrix; the vocabulary is padded for ``ways`` ranks."""
    shape, _, _ = split(kind, parts, ways, 0)
    if kind is Kind.VOCABULARY:
        return (shape[0] * ways, *shape[1:])
    return split(kind, parts, 1, 0)[0]


@cache
def contents(kind: Kind, parts: tuple[TensorSpec, ...], chunk: Rectangle) -> tuple[tuple[Box, ...], int]:
    """Boxes of the parts inside a chunk, and the padding elements at its end."""
    _, boxes, _ = split(kind, parts, 1, 0)
    found = tuple(cut for box in boxes for cut in _cut(box, parts[box[0]], chunk))
    return found, prod(chunk.shape) - sum(prod(extent) for _, _, extent, _, _ in found)


def _cut(box: Box, spec: TensorSpec, chunk: Rectangle) -> list[Box]:
    """What of a box of the global matrix lies in a chunk: up to three boxes where query groups interleave."""
    part, start, extent, offset, strides = box
    if len(spec.index) == len(spec.shape):  # a rectangle of the matrix itself
        width = prod(spec.shape[1:])
        return [_rectangle(part, start, extent, offset // width, 0, chunk)] if _meets(box, spec, chunk) else []
    width = prod(spec.index[2:])
    top, block = offset // width, strides[0] // width  # rows of one group, all parts
    low, high = chunk.row, chunk.row + chunk.shape[0]
    found: list[Box] = []
    group = 0
    while group < extent[0]:
        first = top + group * block
        begin, end = max(first, low), min(first + extent[1], high)
        count = 1
        if (begin, end) == (first, first + extent[1]):  # whole: so may be the groups after it
            count = min(extent[0] - group, (high - end) // block + 1)
        if begin < end:
            at = (start[0] + group, start[1] + begin - first, *start[2:])
            size = (count, end - begin, *extent[2:])
            found.append((part, at, size, (begin - low) * width, strides))
        group += count
    return found


def _meets(box: Box, spec: TensorSpec, chunk: Rectangle) -> bool:
    top = box[3] // prod(spec.shape[1:])
    rows = top < chunk.row + chunk.shape[0] and chunk.row < top + box[2][0]
    return rows and (len(chunk.shape) < 2 or chunk.column < spec.shape[1])


def _rectangle(part: int, start: Ints, extent: Ints, top: int, left: int, chunk: Rectangle) -> Box:
    """The meeting of a box at (top, left) of the matrix with a chunk."""
    begin, end = max(top, chunk.row), min(top + extent[0], chunk.row + chunk.shape[0])
    if len(extent) == 1:
        return part, (start[0] + begin - top,), (end - begin,), begin - chunk.row, (1,)
    a, b = max(left, chunk.column), min(left + extent[1], chunk.column + chunk.shape[1])
    width = chunk.shape[1]
    at = (start[0] + begin - top, start[1] + a - left)
    return part, at, (end - begin, b - a), (begin - chunk.row) * width + a - chunk.column, (width, 1)


def place_chunk(position: Position, chunk: Rectangle, local: str, base: int) -> tuple[list[Segment], list[Padding]]:
    """The segments and padding of a chunk that begins at element ``base`` of the local tensor ``local``."""
    boxes, pad = contents(position.kind, position.parts, chunk)
    names = tuple(position.instance.parts)
    segments = [
        Segment(names[i], start, extent, local, base + offset, strides) for i, start, extent, offset, strides in boxes
    ]
    padding = [Padding(local, base + prod(chunk.shape) - pad, pad)] if pad else []
    return segments, padding


def by_key(found: list[Position]) -> dict[str, list[Position]]:
    """Key -> the positions that it stacks."""
    keys: dict[str, list[Position]] = defaultdict(list)
    for position in found:
        for key in position.keys:
            keys[key].append(position)
    return dict(keys)
