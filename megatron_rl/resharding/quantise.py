"""FP8 (e4m3) quantisation of weights, in blocks or per tensor, of whole tensors or of the shards that ranks hold.

The format is that of DeepSeek-V3's checkpoints (https://huggingface.co/deepseek-ai/DeepSeek-V3, inference/kernel.py):
every 128 x 128 tile of a weight [rows, cols] has one float32 scale, stored as ``weight_scale_inv`` [ceil(rows / 128),
ceil(cols / 128)] = amax / 448, and ``weight = fp8 * weight_scale_inv``. Tiles at the lower and right edge are cut.

Tiles count from the canonical tensor's corner, whoever holds it: a tile that a parallel boundary cuts has one scale,
the maximum over its holders. So quantising shards gives the bits of quantising the full tensor.
"""

from collections.abc import Callable, Collection, Mapping
from functools import cache
from types import ModuleType
from typing import Any

import torch

from megatron_rl.resharding.layout import Layout, Segment
from megatron_rl.resharding.layouts.fp8 import (
    BLOCK,
    SCALE,
    canonical_box,
    cut_tensors,
    owned,
    quantised_names,
    scale_shape,
    tile_size,
    touched,
)
from megatron_rl.system import machine

__all__ = [
    "LARGEST",
    "ShardQuantiser",
    "dequantise_blockwise",
    "quantise_blockwise",
    "quantised_names",
    "shard_amax",
]

LARGEST = 448.0  # the largest finite e4m3 number
_TOGETHER = 256 << 20  # bytes of float32 that a GPU works on together
_TINY = torch.finfo(torch.float32).tiny  # a tile of zeros has this scale: never a division by zero


def _scale(amax: torch.Tensor) -> torch.Tensor:
    """float32 scales of maxima; NaN for NaN and infinity, so that they stay visible in every element."""
    # By a tensor: CUDA divides by a number of Python's as a product with its rounded reciprocal, which is other bits.
    quotients = amax / torch.full((), LARGEST, device=amax.device)
    return quotients.clamp_min(_TINY).masked_fill(amax.isinf(), torch.nan)


def _cast(weight: torch.Tensor, scale_inv: torch.Tensor) -> torch.Tensor:
    # A quotient exceeds 448 by a rounding error at most, and rounds to it.
    return (weight.float() / scale_inv).to(torch.float8_e4m3fn)


def _float(quantised: torch.Tensor) -> torch.Tensor:
    """float32 of e4m3 numbers. On a CPU by their bits, several times as fast as torch's conversion."""
    raw = quantised.view(torch.int8)
    if quantised.is_cuda or ((raw & 127) == 127).any():  # NaN
        return quantised.float()
    # Sign and exponent-and-mantissa into float32's places; the exponents' biases differ by 120.
    bits = raw.to(torch.int32).bitwise_left_shift_(20).bitwise_and_(0x87F0_0000 - (1 << 32))
    return bits.view(torch.float32).mul_(2.0**120)


def _columns(scales: torch.Tensor, start: int, cols: int, block: int) -> torch.Tensor:
    """The scales [..., tiles] of rows of tiles as one for each of the ``cols`` columns from ``start`` on."""
    return scales.repeat_interleave(block, -1)[..., start % block : start % block + cols]


def _slab(cols: int, block: int, device: torch.device) -> int:
    """Rows, a multiple of ``block``, that are worked on together: a CPU's in its cache, a GPU's in few launches."""
    return max(1, _TOGETHER // (4 * cols * block)) * block if device.type == "cuda" else block


def shard_amax(weight: torch.Tensor, start: tuple[int, int] = (0, 0), block: int = BLOCK) -> torch.Tensor:
    """The largest magnitude in every tile that a shard [rows, cols] touches, as far as the shard holds the tile.

    ``start``: the canonical row and column of its first element. Returns float32 [tile rows, tile columns].
    """
    first = [s % block for s in start]
    counts = [-(-(f + n) // block) for f, n in zip(first, weight.shape, strict=True)]
    found = torch.empty(counts, dtype=torch.float32, device=weight.device)
    step = _slab(weight.shape[1], block, weight.device)
    for top in range(0, counts[0] * block, step):  # never a float32 copy of the weight
        slab = weight[max(top - first[0], 0) : top + step - first[0]].abs()
        above, high = (first[0] if top == 0 else 0), min(step, counts[0] * block - top)
        sides = (first[1], counts[1] * block - first[1] - slab.shape[1], above, high - above - len(slab))
        tiles = torch.nn.functional.pad(slab, sides).view(high // block, block, counts[1], block)
        found[top // block : (top + high) // block] = tiles.amax(1).amax(-1).float()
    return found


def _quantise(weight: torch.Tensor, start: tuple[int, int], scale_inv: torch.Tensor, block: int) -> torch.Tensor:
    """A shard in float8_e4m3fn, with the scales of the tiles that it touches."""
    quantised = torch.empty(weight.shape, dtype=torch.float8_e4m3fn, device=weight.device)
    above, step = start[0] % block, _slab(weight.shape[1], block, weight.device)
    for top in range(0, len(scale_inv) * block, step):
        rows = slice(max(top - above, 0), top + step - above)
        band = weight[rows]
        scales = _columns(scale_inv[top // block : (top + step) // block], start[1], weight.shape[1], block)
        if len(scales) > 1:
            skipped = above if top == 0 else 0
            scales = scales.repeat_interleave(block, 0)[skipped : skipped + len(band)]
        quantised[rows] = _cast(band, scales)
    return quantised


def quantise_blockwise(weight: torch.Tensor, block: int = BLOCK) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight [rows, cols] as float8_e4m3fn [rows, cols] and float32 scale_inv [ceil(rows/block), ceil(cols/block)].

    Works in float32 whatever the weight's dtype; extra memory is one band of ``block`` rows. Rows can be quantised in
    bands that begin at multiples of ``block``. A tile that holds NaN or infinity becomes NaN.
    """
    scale_inv = _scale(shard_amax(weight, (0, 0), block))
    return _quantise(weight, (0, 0), scale_inv, block), scale_inv


def dequantise_blockwise(
    quantised: torch.Tensor, scale_inv: torch.Tensor, dtype: torch.dtype, block: int = BLOCK
) -> torch.Tensor:
    """The inverse: fp8 * scale_inv in float32, rounded to ``dtype`` [rows, cols].

    Raises ValueError when the scales' shape is not [ceil(rows/block), ceil(cols/block)].
    """
    expected = scale_shape(tuple(quantised.shape), block)
    if tuple(scale_inv.shape) != expected:
        raise ValueError(
            f"scale_inv has shape {list(scale_inv.shape)}; a weight of shape {list(quantised.shape)} in blocks of "
            f"{block} needs {list(expected)}"
        )
    weight = torch.empty(quantised.shape, dtype=dtype, device=quantised.device)
    for i in range(expected[0]):
        rows = slice(i * block, (i + 1) * block)
        band = _float(quantised[rows])
        weight[rows] = band.mul_(_columns(scale_inv[i].float(), 0, band.shape[1], block))
    return weight


def _view(tensor: torch.Tensor, segment: Segment) -> torch.Tensor:
    return tensor.as_strided(segment.shape, segment.strides, int(tensor.storage_offset()) + segment.offset)


class ShardQuantiser:
    """Quantises what one rank of ``layout`` holds, step after step, into the local tensors of ``quantised_source``.

    Every tile has the scale, and every element the bits, that quantising the full tensor gives.
    """

    def __init__(self, layout: Layout, rank: int, names: Collection[str], block: int = BLOCK) -> None:
        tensors = layout.tensors
        self.segments = [s for s in layout.ranks[rank].segments if s.tensor in names]
        self.boxes = [canonical_box(tensors[s.tensor], s.start, s.shape) for s in self.segments]
        self.sizes = [tile_size(tensors[s.tensor].shape, block) for s in self.segments]
        self.cut = {name: scale_shape(tensors[name].shape, block) for name in cut_tensors(layout, names, block)}
        self._tiles: Any = None  # see ``_tables``: of the first call's dtype and device

    def __call__(
        self,
        parameters: Mapping[str, torch.Tensor],
        reduce_max: Callable[[torch.Tensor], object],
        into: Mapping[str, torch.Tensor] | None = None,
    ) -> dict[str, torch.Tensor]:
        """What the rank offers to FP8 engines.

        ``parameters`` (contiguous, by local name) are the rank's own; those that are not quantised are passed on as
        they are. ``reduce_max`` makes a float32 vector the elementwise maximum over all ranks of the layout, in place
        (``partial(dist.all_reduce, op=dist.ReduceOp.MAX)``); it is called once by all ranks or, where no boundary
        cuts a tile, by none. ``into``: what an earlier call has made, on the parameters' device, whose quantised
        elements and scales are overwritten.
        """
        offered = dict(parameters)
        for local in {s.local for s in self.segments}:
            offered[local] = into[local] if into else torch.empty_like(parameters[local], dtype=torch.float8_e4m3fn)
        kernels = quantise_kernels(next(iter(parameters.values())).device)
        dtypes = {parameters[s.local].dtype for s in self.segments}
        if kernels and len(dtypes) == 1 and dtypes <= kernels.ELEMENTS.keys() and {*self.sizes} == {kernels.BLOCK}:
            scales = self._by_kernels(kernels, parameters, offered, reduce_max)
        else:
            scales = self._by_torch(parameters, offered, reduce_max)
        inside = {}
        for s, box, size, found in zip(self.segments, self.boxes, self.sizes, scales, strict=True):
            mine, count = owned(box, size)
            if count[0] * count[1]:
                first_tile = touched(box, size)[0]
                inside[s.tensor + SCALE] = _part(found, ((mine[0] - first_tile[0], mine[1] - first_tile[1]), count))
        if not into:
            return offered | {name: part.contiguous() for name, part in inside.items()}
        kept = {name: into[name] for name in inside}
        torch._foreach_copy_(list(kept.values()), list(inside.values()))
        return offered | kept

    def _by_torch(
        self,
        parameters: Mapping[str, torch.Tensor],
        offered: Mapping[str, torch.Tensor],
        reduce_max: Callable[[torch.Tensor], object],
    ) -> list[torch.Tensor]:
        """Fill what is offered; the scales of each segment's tiles."""
        held = [
            _view(parameters[s.local], s).reshape(shape)
            for s, (_, shape) in zip(self.segments, self.boxes, strict=True)
        ]
        maxima = [
            shard_amax(weight, start, size)
            for weight, (start, _), size in zip(held, self.boxes, self.sizes, strict=True)
        ]
        if self.cut:
            self._exchange(maxima, next(iter(parameters.values())).device, reduce_max)
        scales = [_scale(found) for found in maxima]
        for s, weight, box, size, found in zip(self.segments, held, self.boxes, self.sizes, scales, strict=True):
            quantised = _quantise(weight, box[0], found, size)
            _view(offered[s.local].view(torch.uint8), s).copy_(quantised.view(torch.uint8).view(s.shape))
        return scales

    def _by_kernels(
        self,
        kernels: ModuleType,
        parameters: Mapping[str, torch.Tensor],
        offered: Mapping[str, torch.Tensor],
        reduce_max: Callable[[torch.Tensor], object],
    ) -> list[torch.Tensor]:
        """As ``_by_torch``: one launch for all tensors without a cut tile; for the others one that leaves its maxima in
        the vector which is exchanged, and one that takes the scales from there."""
        first = parameters[self.segments[0].local]
        if self._tiles is None:
            self._tiles = self._tables(kernels, first)
        tiles, grids, own_count = self._tiles
        own = torch.empty(own_count, dtype=torch.float32, device=first.device)
        shared = torch.zeros(sum(rows * cols for rows, cols in self.cut.values()), device=first.device)
        bases = [(parameters[s.local].data_ptr(), offered[s.local].data_ptr()) for s in self.segments]
        tiles.quantise(tiles.addresses(bases, own.data_ptr(), 0))
        if self.cut:
            tiles.measure(tiles.addresses(bases, 0, shared.data_ptr()))
            reduce_max(shared)
            shared = _scale(shared)
            tiles.cast(tiles.addresses(bases, 0, shared.data_ptr()))
        return [
            (shared if s.tensor in self.cut else own).as_strided(grid, (at.stride, 1), at.offset)
            for s, (grid, at) in zip(self.segments, grids, strict=True)
        ]

    def _tables(self, kernels: ModuleType, first: torch.Tensor) -> tuple[Any, list[tuple[tuple[int, int], Any]], int]:
        """The kernels' tables; of each segment the grid of its tiles, and where their numbers lie; how many are not of
        cut tensors."""
        matrices = [
            kernels.matrix(s.shape, s.strides, s.offset, *box) for s, box in zip(self.segments, self.boxes, strict=True)
        ]
        begins, end = {}, 0
        for name, (rows, cols) in self.cut.items():
            begins[name] = end
            end += rows * cols
        numbers, count = [], 0
        for s, m, box, size in zip(self.segments, matrices, self.boxes, self.sizes, strict=True):
            if s.tensor in begins:
                (row, col), width = touched(box, size)[0], self.cut[s.tensor][1]
                numbers.append(kernels.Numbers(begins[s.tensor] + row * width + col, width))
            else:
                numbers.append(kernels.Numbers(count, m.grid[1]))
                count += m.grid[0] * m.grid[1]
        cut = [s.tensor in begins for s in self.segments]
        tiles = kernels.Tiles(matrices, cut, numbers, first.dtype, first.device)
        return tiles, [(m.grid, at) for m, at in zip(matrices, numbers, strict=True)], count

    def _exchange(
        self, maxima: list[torch.Tensor], device: torch.device, reduce_max: Callable[[torch.Tensor], object]
    ) -> None:
        """Replace the maxima of cut tensors' tiles by those over all ranks; ``device``: of a rank's, if it has none."""
        vector = torch.zeros(sum(rows * cols for rows, cols in self.cut.values()), device=device)
        pieces = vector.split([rows * cols for rows, cols in self.cut.values()])
        grids = {name: piece.view(shape) for (name, shape), piece in zip(self.cut.items(), pieces, strict=True)}
        mine = [
            (i, _part(grids[s.tensor], touched(box, size)))
            for i, (s, box, size) in enumerate(zip(self.segments, self.boxes, self.sizes, strict=True))
            if s.tensor in grids
        ]
        for i, part in mine:
            part.copy_(maxima[i])
        reduce_max(vector)
        for i, part in mine:
            maxima[i] = part


def _part(grid: torch.Tensor, tiles: tuple[tuple[int, int], tuple[int, int]]) -> torch.Tensor:
    (row, col), (rows, cols) = tiles
    return grid[row : row + rows, col : col + cols]


@cache
def quantise_kernels(device: torch.device) -> ModuleType | None:
    """The kernels for GPUs that convert to e4m3 (compute capability 8.9 or more), where Triton is there; None: torch
    does the work."""
    if (
        device.type != "cuda"
        or machine.installed("triton") is None
        or torch.cuda.get_device_capability(device) < (8, 9)
    ):
        return None
    from megatron_rl.resharding import quantise_kernels as kernels

    return kernels
