"""Strided views of flat memory as boxes of an index space. Whole numbers only, no torch.

A view of a flat array is (offset, shape, steps). Narrowed, transposed, split into heads or viewed in another shape, it
stays that; what it covers of the array's index space is one box or several.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from megatron_rl.resharding.layout import merged, row_major
from megatron_rl.resharding.plan import Ints

Dims = tuple[tuple[int, int, int], ...]  # (extent, step, stride) of each dimension, largest step first


class Piece(NamedTuple):
    """A box of an index space, and where the same elements lie in another flat array."""

    start: Ints
    shape: Ints
    offset: int
    strides: Ints  # one per dimension of the index space


def pieces(index: Ints, offset: int, shape: Ints, steps: Ints, other: int, strides: Ints) -> Iterator[Piece]:
    """What a view (offset, shape, steps) of a row-major array covers of its ``index`` space.

    ``other`` and ``strides`` are the offset and the steps of the same elements in another array. A run of rows that is
    not aligned to a refined first dimension gives three boxes; a step that is none of the index space's gives one box
    for each multiple of it.
    """
    order = sorted(range(len(shape)), key=lambda i: -steps[i])
    extents, (step, stride) = merged(*(tuple(x[i] for i in order) for x in (shape, steps, strides)))
    dims = tuple(d for d in zip(extents, step, stride, strict=True) if d[0] > 1)
    for piece in _pieces(index, row_major(index), offset, dims):
        yield piece._replace(offset=other + piece.offset)


@lru_cache(maxsize=1 << 14)
def _pieces(index: Ints, widths: Ints, offset: int, dims: Dims) -> tuple[Piece, ...]:
    """As ``pieces`` of dimensions as few as can be, and with 0 for ``other``."""
    return tuple(_cut(index, widths, offset, dims, 0))


def _cut(index: Ints, widths: Ints, offset: int, dims: Dims, other: int) -> Iterator[Piece]:
    start, rest = [], offset
    for width in widths:
        digit, rest = divmod(rest, width)
        start.append(digit)
    extents = [1] * len(index)
    strides: list[int | None] = [None] * len(index)
    for n, (extent, step, stride) in enumerate(dims):
        k = next((i for i, width in enumerate(widths) if index[i] > 1 and width == step), -1)
        if k < 0 or strides[k] is not None:
            for j in range(extent):
                yield from _cut(index, widths, offset + j * step, dims[:n] + dims[n + 1 :], other + j * stride)
            return
        if start[k] + extent > index[k]:  # it carries into the dimension before
            yield from _carried(index, widths, offset, dims, other, n, start[k], index[k])
            return
        extents[k], strides[k] = extent, stride
    natural = 1
    for k in reversed(range(len(index))):
        stride = natural if (found := strides[k]) is None else found
        strides[k], natural = stride, stride * extents[k]
    yield Piece(tuple(start), tuple(extents), other, tuple(s or 0 for s in strides))


def _carried(
    index: Ints, widths: Ints, offset: int, dims: Dims, other: int, n: int, digit: int, size: int
) -> Iterator[Piece]:
    """The pieces of a view whose dimension ``n`` begins at ``digit`` of an index dimension of ``size`` and goes on."""
    extent, step, stride = dims[n]
    head = -digit % size
    whole, tail = divmod(extent - head, size)
    done = 0
    for count in (head, whole * size, tail):
        part: Dims = ((count, step, stride),)
        if count > size:
            part = ((whole, step * size, stride * size), (size, step, stride))
        if count:
            inner = tuple(sorted((*dims[:n], *part, *dims[n + 1 :]), key=lambda d: -d[1]))
            kept = tuple(d for d in inner if d[0] > 1)
            yield from _cut(index, widths, offset + done * step, kept, other + done * stride)
        done += count
