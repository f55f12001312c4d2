"""FP8 quantisation in tiles of 128 x 128 on a GPU, in Triton: what ``resharding.quantise`` says, to the bit.

A program has one tile in its registers, so a weight is read once and written once. One launch works through the tiles
of any number of matrices, by a table of their shapes, which never changes, and one of their addresses.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from triton import knobs

BLOCK = 128
WARPS = 8
_ALIGNED = 16  # bytes that are loaded together
_LARGEST = tl.constexpr(448.0)
_SMALL = tl.constexpr(1e-30)  # a scale above which no remainder of a quotient is lost to underflow
_TINY = tl.constexpr(torch.finfo(torch.float32).tiny)
ELEMENTS = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}  # of weights


class Numbers(NamedTuple):
    """Where the number of each of a matrix's tiles lies: that of its first one, and from row to row of tiles."""

    offset: int  # float32s, as the stride
    stride: int


class Matrix(NamedTuple):
    """Where a shard's elements lie: row r begins at offset + r // inner x outer stride + r % inner x row stride."""

    offset: int  # elements, as the strides
    rows: int
    cols: int
    start: tuple[int, int]  # canonical row and column of its first element
    inner: int
    outer_stride: int
    row_stride: int

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tiles that it touches."""
        (row, col), block = self.start, BLOCK
        return -(-(row % block + self.rows) // block), -(-(col % block + self.cols) // block)

    @property
    def whole(self) -> bool:
        """Whether its tiles are all whole, and its rows begin where vectors may."""
        multiples = self.offset, self.rows, self.cols, *self.start, self.outer_stride, self.row_stride
        return not any(n % BLOCK for n in multiples)


def matrix(
    shape: tuple[int, ...], strides: tuple[int, ...], offset: int, start: tuple[int, int], extent: tuple[int, int]
) -> Matrix:
    """A box [..., rows, cols] of a local tensor, the canonical rows and columns ``extent`` from ``start`` on."""
    if strides[-1] != 1 or len(shape) > 3:
        raise ValueError(f"a box of shape {shape} and strides {strides} has no rows of neighbouring elements")
    return Matrix(offset, *extent, start, shape[-2], strides[0] if len(shape) == 3 else 0, strides[-2])


@triton.jit
def _to_e4m3(x):
    """float32 to e4m3 by its bits, rounded to nearest even: as torch does it, for Triton's interpreter does not."""
    bits = x.to(tl.uint32, bitcast=True)
    sign = bits & 0x80000000
    size = bits ^ sign
    # below 2^-6 the sum with 2^14 has the number's last bits where the result wants them
    small = (size.to(tl.float32, bitcast=True) + 16384.0).to(tl.uint32, bitcast=True) - (141 << 23)
    normal = (size + ((size >> 20) & 1) + 0x7FFFF - (120 << 23)) >> 20
    found = tl.where(size < (121 << 23), small, normal)
    return (tl.where(size >= (1087 << 20), 0x7F, found) | (sign >> 24)).to(tl.uint8)


@triton.jit
def _tile(
    tiles, shapes, addresses, element: tl.constexpr, whole: tl.constexpr, measure: tl.constexpr, cast: tl.constexpr,
    quick: tl.constexpr, by_bits: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    entry = tiles + 3 * tl.program_id(0).to(tl.int64)
    matrix = tl.load(entry).to(tl.int64)
    above, before = tl.load(entry + 1), tl.load(entry + 2)
    shape = shapes + 8 * matrix
    rows, cols, inner = tl.load(shape), tl.load(shape + 1), tl.load(shape + 4).to(tl.int32)
    r = above * block - tl.load(shape + 2).to(tl.int32) + tl.arange(0, block)
    c = before * block - tl.load(shape + 3).to(tl.int32) + tl.arange(0, block)
    at = (r // inner * tl.load(shape + 5) + r % inner * tl.load(shape + 6))[:, None] + c[None, :]
    inside = ((r >= 0) & (r < rows))[:, None] & ((c >= 0) & (c < cols))[None, :]
    place = addresses + 3 * matrix
    read = tl.load(place).to(tl.pointer_type(element)) + at
    if whole:
        x = tl.load(tl.max_contiguous(tl.multiple_of(read, (1, 16)), (1, block))).to(tl.float32)
    else:
        x = tl.load(read, mask=inside, other=0.0).to(tl.float32)
    number = tl.load(place + 2).to(tl.pointer_type(tl.float32)) + above * tl.load(shape + 7) + before
    if measure:
        size = tl.where(x == x, tl.abs(x), float("inf"))
        found = tl.max(tl.max(size, 1), 0)
        if cast:
            scale = tl.maximum(tl.math.div_rn(found, _LARGEST), _TINY)
            scale = tl.where(found == float("inf"), float("nan"), scale)
            tl.store(number, scale)
        else:
            tl.store(number, found)
    else:
        scale = tl.load(number)
    if cast:
        quotient = tl.zeros_like(x)
        if quick and scale > _SMALL:
            # Exact as div_rn, in a third of its steps: a quotient, its remainder, and the quotient put right by it.
            inverse = tl.math.div_rn(1.0, scale)
            about = x * inverse
            right = tl.math.fma(tl.math.fma(-about, quotient + scale, x), quotient + inverse, about)
            quotient = tl.where(x == 0.0, about, right)  # which has lost the sign of a zero
        else:
            quotient = tl.math.div_rn(x, quotient + scale)
        if by_bits:  # noqa: SIM108 (a choice when it is compiled)
            short = _to_e4m3(quotient)
        else:
            short = quotient.to(tl.float8e4nv).to(tl.uint8, bitcast=True)
        write = tl.load(place + 1).to(tl.pointer_type(tl.uint8)) + at
        if whole:
            tl.store(tl.max_contiguous(tl.multiple_of(write, (1, 16)), (1, block)), short)
        else:
            tl.store(write, short, mask=inside)


class Tiles:
    """The tiles of some matrices of one dtype on one device, of which each call brings other ``addresses``.

    ``cut``: matrices of which other ranks hold parts of the same tiles; they are measured and, when the scales are
    known, cast. The others are quantised in one pass. ``numbers``: of the tiles of each, in the room that a call brings
    for those that are cut, and for the others.
    """

    def __init__(
        self,
        matrices: Sequence[Matrix],
        cut: Sequence[bool],
        numbers: Sequence[Numbers],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._element, self._device, self._cut = ELEMENTS[dtype], device, np.array(cut)
        self._offsets = np.array(
            [(m.offset * dtype.itemsize, m.offset, 4 * n.offset) for m, n in zip(matrices, numbers, strict=True)]
        )
        shapes = [
            (m.rows, m.cols, m.start[0] % BLOCK, m.start[1] % BLOCK, m.inner, m.outer_stride, m.row_stride, n.stride)
            for m, n in zip(matrices, numbers, strict=True)
        ]
        self._shapes = torch.tensor(shapes, dtype=torch.int64).to(device)
        self._tables: dict[tuple[bool, bool], torch.Tensor] = {}  # by cut and whole
        for kind in {(c, m.whole) for c, m in zip(cut, matrices, strict=True)}:
            parts = [
                np.insert(np.indices(m.grid, dtype=np.int32).reshape(2, -1), 0, i, 0).T
                for i, (c, m) in enumerate(zip(cut, matrices, strict=True))
                if (c, m.whole) == kind
            ]
            self._tables[kind] = torch.from_numpy(np.ascontiguousarray(np.concatenate(parts))).to(device)

    def addresses(self, tensors: Sequence[tuple[int, int]], own: int, of_many: int) -> np.ndarray:
        """Of every matrix (int64 [n, 3]): its first element, the first of its quantised ones, which lie as it does, and
        its tiles' numbers. ``tensors``: the addresses of the local tensor and its quantised one; ``own`` and
        ``of_many``: those of the numbers of matrices that are not cut, and of cut ones."""
        rooms = np.where(self._cut, of_many, own)[:, None]
        return np.concatenate([np.array(tensors, dtype=np.int64), rooms], 1) + self._offsets

    def quantise(self, addresses: np.ndarray) -> None:
        """Of the matrices that are not cut: scales and quantised elements."""
        self._run(addresses, of_cut=False, measure=True, cast=True)

    def measure(self, addresses: np.ndarray) -> None:
        """Of the cut ones: the largest magnitude in every tile, as far as the matrix holds it; infinity for NaN."""
        self._run(addresses, of_cut=True, measure=True, cast=False)

    def cast(self, addresses: np.ndarray) -> None:
        """Of the cut ones: quantised elements, by the scales that are there."""
        self._run(addresses, of_cut=True, measure=False, cast=True)

    def _run(self, addresses: np.ndarray, *, of_cut: bool, measure: bool, cast: bool) -> None:
        aligned = not (addresses[:, :2] % _ALIGNED).any()
        table = torch.from_numpy(np.ascontiguousarray(addresses)).to(self._device)
        for (cut, whole), tiles in self._tables.items():
            if cut == of_cut:
                _tile[(len(tiles),)](
                    *(tiles, self._shapes, table),
                    element=self._element,
                    whole=whole and aligned,
                    measure=measure,
                    cast=cast,
                    # bfloat16 has so few bits that all pairs of numerators and maxima were tried
                    quick=self._element == tl.bfloat16 and not knobs.runtime.interpret,
                    by_bits=knobs.runtime.interpret,
                    block=BLOCK,
                    num_warps=WARPS if whole and aligned else 2 * WARPS,  # masks and single bytes take registers
                )
