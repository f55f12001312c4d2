"""FP8 layouts: which tensors are quantised, and who holds the scales of which tiles. Imports no torch.

A tile is ``block`` x ``block`` elements of the canonical tensor, counted from its corner; a block of 0 makes the whole
tensor one tile (per-tensor scales). Scales are canonical tensors of their own, named after their weight.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import cache
from math import prod
from typing import Any

from megatron_rl.errors import InputError
from megatron_rl.resharding.families import family
from megatron_rl.resharding.families.table import instances
from megatron_rl.resharding.layout import Layout, Segment, Shard, TensorSpec, row_major

BLOCK = 128  # rows and columns of a tile (``weight_block_size`` in config.json)
SCALE = "_scale_inv"  # what a weight's name ends with where its scales are meant
FP8 = "float8_e4m3fn"
QUANTISATION = {  # config.json's quantization_config
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [BLOCK, BLOCK],
}
Grid = tuple[tuple[int, int], tuple[int, int]]  # first row and column, numbers of rows and columns


def quantised_names(hf_config: Mapping[str, Any]) -> set[str]:
    """The canonical tensors that become FP8: the layers' linear weights.

    Embedding, head, norms, biases, the router and the projection before a multi-token prediction layer stay.
    """
    return {
        name for instance in instances(family(hf_config), hf_config) if instance.row.linear for name in instance.parts
    }


def tile_size(shape: tuple[int, ...], block: int) -> int:
    """Rows and columns of a tile of a tensor of this shape."""
    return block or max(shape)


def scale_shape(shape: tuple[int, ...], block: int = BLOCK) -> tuple[int, ...]:
    """Shape of the scales of a weight [rows, cols]: one for each tile, the cut ones at the edges included."""
    return tuple(-(-n // tile_size(shape, block)) for n in shape)


@cache
def canonical_box(spec: TensorSpec, start: tuple[int, ...], shape: tuple[int, ...]) -> Grid:
    """A segment's box in rows and columns of its tensor [rows, cols]."""
    if len(spec.index) == 2:
        return (start[0], start[1]), (shape[0], shape[1])
    return (start[0] * spec.index[1] + start[1], start[2]), (shape[0] * shape[1], shape[2])


def touched(box: Grid, block: int) -> Grid:
    """The tiles that a box has elements of."""
    (row, col), (rows, cols) = box
    first = (row // block, col // block)
    return first, (-(-(row + rows) // block) - first[0], -(-(col + cols) // block) - first[1])


def owned(box: Grid, block: int) -> Grid:
    """The tiles whose first element a box has: of disjoint boxes, each tile has one owner."""
    (row, col), (rows, cols) = box
    first = (-(-row // block), -(-col // block))
    return first, (-(-(row + rows) // block) - first[0], -(-(col + cols) // block) - first[1])


def cut_tensors(layout: Layout, names: Collection[str], block: int = BLOCK) -> list[str]:
    """The tensors that have a tile of which no rank holds all, in the layout's order: its maximum is over ranks."""
    cut = set()
    for shard in {id(shard): shard for shard in layout.ranks}.values():
        for s in shard.segments:
            if s.tensor not in names or s.tensor in cut:
                continue
            spec = layout.tensors[s.tensor]
            size = tile_size(spec.shape, block)
            begin, extent = canonical_box(spec, s.start, s.shape)
            ends = [(a + n, a + n == whole) for a, n, whole in zip(begin, extent, spec.shape, strict=True)]
            if any(a % size for a in begin) or any(end % size and not edge for end, edge in ends):
                cut.add(s.tensor)
    return [name for name in layout.tensors if name in cut]


def quantised_tensors(
    tensors: Mapping[str, TensorSpec], names: Collection[str], block: int = BLOCK
) -> dict[str, TensorSpec]:
    """The canonical tensors of the quantised model: each weight's scales follow it."""
    found: dict[str, TensorSpec] = {}
    for name, spec in tensors.items():
        if name in names:
            found[name] = replace(spec, dtype=FP8)
            found[name + SCALE] = TensorSpec(scale_shape(spec.shape, block), dtype="float32")
        else:
            found[name] = spec
    return found


def _unused(layout: Layout, names: Collection[str]) -> frozenset[str]:
    return layout.unused | {name + SCALE for name in layout.unused if name in names}


def quantised_source(layout: Layout, names: Collection[str], block: int = BLOCK) -> Layout:
    """The layout of ranks that quantised what they hold: weights where they were, and the scales of the tiles whose
    first element is theirs, each tensor's in a local tensor of the scales' canonical name."""

    @cache
    def scales(spec: TensorSpec, start: tuple[int, ...], shape: tuple[int, ...]) -> Grid:
        return owned(canonical_box(spec, start, shape), tile_size(spec.shape, block))

    def convert(shard: Shard) -> Shard:
        shapes, segments = dict(shard.locals), list(shard.segments)
        for s in shard.segments:
            if s.tensor in names:
                first, count = scales(layout.tensors[s.tensor], s.start, s.shape)
                if prod(count):
                    name = s.tensor + SCALE
                    shapes[name] = count
                    segments.append(Segment(name, first, count, name, 0, row_major(count)))
        return Shard(shapes, tuple(segments), shard.padding)

    done = {id(shard): convert(shard) for shard in layout.ranks}
    ranks = tuple(done[id(shard)] for shard in layout.ranks)
    return Layout(quantised_tensors(layout.tensors, names, block), ranks, _unused(layout, names))


def quantised_engine(layout: Layout, names: Collection[str], block: int = BLOCK) -> Layout:
    """The layout of an engine of FP8 weights: each parameter of them, [.., rows, cols], has one of scales,
    [.., ceil(rows/block), ceil(cols/block)], named after it.

    Raises InputError naming a tensor that the engine cuts inside a tile.
    """

    def convert(shard: Shard) -> Shard:
        shapes, segments = dict(shard.locals), list(shard.segments)
        for s in shard.segments:
            if s.tensor in names:
                shape = shard.locals[s.local]
                found = _engine_scales(s, layout.tensors[s.tensor], shape, block)
                shapes[s.local + SCALE] = (*shape[:-2], *(-(-n // block) for n in shape[-2:]))
                segments.append(found)
        return Shard(shapes, tuple(segments), shard.padding)

    done = {id(shard): convert(shard) for shard in layout.ranks}
    ranks = tuple(done[id(shard)] for shard in layout.ranks)
    return Layout(quantised_tensors(layout.tensors, names, block), ranks, _unused(layout, names))


def _engine_scales(s: Segment, spec: TensorSpec, shape: tuple[int, ...], block: int) -> Segment:
    begin, extent = canonical_box(spec, s.start, s.shape)
    rows, cols = shape[-2:]
    matrix, inside = divmod(s.offset, rows * cols)
    row, col = divmod(inside, cols)
    ends = (begin[0] + extent[0], begin[1] + extent[1])
    aligned = all(n % block == 0 for n in (*begin, row, col))
    edges = (row + extent[0] == rows, col + extent[1] == cols)
    for end, whole, edge in zip(ends, spec.shape, edges, strict=True):
        aligned = aligned and (end % block == 0 or (end == whole and edge))
    if not aligned:
        cure = "no parallel size changes that: "
        if tuple(ends) != tuple(spec.shape) or any(begin):  # a part of it, which may be larger
            experts = "raise its expert_parallel, " if ".experts." in s.tensor else ""
            cure = f"lower the engine's tensor_parallel, {experts}or "
        raise InputError(
            f"The engine holds rows {begin[0]} to {ends[0]} and columns {begin[1]} to {ends[1]} of {s.tensor} in "
            f"{s.local}, which cuts its {block} x {block} FP8 tiles: {cure}keep the model's "
            "dtype."
        )
    first, count = touched((begin, extent), block)
    width = -(-cols // block)
    offset = matrix * -(-rows // block) * width + row // block * width + col // block
    return Segment(s.tensor + SCALE, first, count, s.local + SCALE, offset, (width, 1))
