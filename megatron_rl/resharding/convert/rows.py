"""Moving rows of tensors between files and memory, where they lie as they do in the canonical tensor."""

import os
from collections.abc import Callable, Iterator
from itertools import product
from math import prod
from typing import Any, NamedTuple

import numpy as np

from megatron_rl.errors import InputError
from megatron_rl.resharding.convert.kernel import Files
from megatron_rl.resharding.convert.unfit import Bits
from megatron_rl.resharding.folders.stored import FP8, ITEMSIZES, Place, Stored
from megatron_rl.resharding.layout import TensorSpec, merged, row_major
from megatron_rl.resharding.layouts.fp8 import BLOCK, scale_shape
from megatron_rl.resharding.plan import position

Ints = tuple[int, ...]
PORTION = 1 << 16  # bytes in one call: with more Linux looks for larger pages, which may take longer than copying


def row_boxes(spec: TensorSpec, first: int, last: int) -> Iterator[tuple[Ints, Ints]]:
    """(start, extent) of the boxes of the index space that make up rows [first, last) of a tensor, in order."""
    if len(spec.index) == len(spec.shape):
        rest = spec.index[1:]
        yield (first, *(0 for _ in rest)), (last - first, *rest)
        return
    size, rest = spec.index[1], spec.index[2:]
    while first < last:
        group, inside = divmod(first, size)
        count = (last - first) // size if inside == 0 else 0
        rows = min(size - inside, last - first) if count == 0 else size
        yield (group, inside, *(0 for _ in rest)), (max(count, 1), rows, *rest)
        first += max(count, 1) * rows


class _Piece(NamedTuple):
    """A box that a band and a stored segment share: where it lies in each, in elements."""

    place: Place
    shape: Ints
    at: int
    strides: Ints
    band_at: int
    band_strides: Ints


def _pieces(stored: Stored, tensor: str, first: int, last: int) -> Iterator[_Piece]:
    spec = stored.layout.tensors[tensor]
    steps = row_major(spec.index)
    base = first * prod(spec.shape[1:])
    for start, extent in row_boxes(spec, first, last):
        for s in stored.segments[tensor]:
            low = tuple(map(max, start, s.start))
            shape = tuple(
                min(a + n, b + m) - c for a, n, b, m, c in zip(start, extent, s.start, s.shape, low, strict=True)
            )
            if min(shape) > 0:
                band_at = sum(i * step for i, step in zip(low, steps, strict=True)) - base
                box, (strides, band_strides) = merged(shape, s.strides, steps)
                yield _Piece(stored.places[s.local], box, position(s, low), strides, band_at, band_strides)


def _runs(stored: Stored, tensor: str, first: int, band: Bits) -> Iterator[tuple[Place, int, Bits]]:
    """(file, byte offset in it, view of the band) of each part of a band of rows that is contiguous in its file."""
    itemsize = band.itemsize
    for piece in _pieces(stored, tensor, first, first + band.size // prod(stored.layout.tensors[tensor].shape[1:])):
        depth = len(piece.shape)
        while depth and piece.strides[depth - 1 :] == row_major(piece.shape[depth - 1 :]):
            depth -= 1
        steps = [step * itemsize for step in piece.band_strides[depth:]]
        for index in product(*(range(n) for n in piece.shape[:depth])):
            at = piece.at + sum(i * step for i, step in zip(index, piece.strides, strict=False))
            start = piece.band_at + sum(i * step for i, step in zip(index, piece.band_strides, strict=False))
            view = np.ndarray(piece.shape[depth:], band.dtype, band.data, start * itemsize, steps)
            yield piece.place, piece.place.offset + at * itemsize, view


def _transfer(call: Callable[[int, Any, int], int], handle: int, content: Bits, at: int) -> int:
    """Have a contiguous array read or written, from byte ``at`` of the file on; bytes done: less where it ends."""
    left = content.reshape(-1).view(np.uint8).data
    while left:
        count = call(handle, left[:PORTION], at + content.nbytes - len(left))
        if not count:
            break
        left = left[count:]
    return content.nbytes - len(left)


def _read(files: Files, place: Place, at: int, content: Bits) -> None:
    """Fill a contiguous array. Raises InputError naming a file that ends too early."""
    done = _transfer(lambda handle, into, at: os.preadv(handle, [into], at), files.open(place.path), content, at)
    if done != content.nbytes:
        raise InputError(f"{place.path} ends at byte {at + done}: it became shorter meanwhile.")


def _write(files: Files, place: Place, at: int, content: Bits) -> None:
    with files.turn(place.path):
        _transfer(os.pwrite, files.open(place.path, os.O_WRONLY), content, at)


def read_rows(files: Files, stored: Stored, tensor: str, first: int, last: int) -> Bits:
    """Rows [first, last) of a canonical tensor, flat."""
    dtype = f"u{ITEMSIZES[stored.dtypes[tensor]]}"
    band = np.empty((last - first) * prod(stored.layout.tensors[tensor].shape[1:]), dtype)
    for place, at, view in _runs(stored, tensor, first, band):
        content = view if view.flags.c_contiguous else np.empty(view.shape, dtype)
        _read(files, place, at, content)
        if content is not view:
            view[...] = content
    return band


def write_rows(files: Files, stored: Stored, tensor: str, first: int, band: Bits) -> None:
    """Write rows of a canonical tensor, from ``first`` on, wherever the layout keeps them."""
    for place, at, view in _runs(stored, tensor, first, band):
        _write(files, place, at, np.ascontiguousarray(view))


def read_scales(files: Files, stored: Stored, tensor: str, first: int, last: int) -> Bits:
    """The scales of rows [first, last), whole tiles, of an FP8 weight, as float32 whatever they are stored in."""
    place, columns = stored.scales[tensor], scale_shape(stored.layout.tensors[tensor].shape)[1]
    top = first // BLOCK
    bits = np.empty((-(-last // BLOCK) - top, columns), f"u{place.itemsize}")
    _read(files, place, place.offset + top * columns * place.itemsize, bits)
    if place.dtype == "BF16":  # the upper half of a float32
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return bits.view(np.float32) if place.dtype == "F32" else bits.view(np.float16).astype(np.float32)


def write_scales(files: Files, stored: Stored, tensor: str, first: int, scales: Bits) -> None:
    """Write scales, from row ``first`` of tiles on."""
    place = stored.scales[tensor]
    _write(files, place, place.offset + first * scales.shape[1] * 4, np.ascontiguousarray(scales))


def rows_as(files: Files, stored: Stored, tensor: str, first: int, last: int, dtype: str) -> tuple[Bits, Bits | None]:
    """Rows of a tensor in this dtype, flat, and their scales when it is FP8 and the tensor is not.

    FP8 on either side needs rows that begin and end with tiles. Raises UnfitError for a number that the dtype cannot
    hold.
    """
    have = stored.dtypes[tensor]
    rows = read_rows(files, stored, tensor, first, last)
    if have == dtype:
        return rows, None
    from megatron_rl.resharding.convert.casts import cast_rows  # torch, which a mere change of layout does without

    scales = read_scales(files, stored, tensor, first, last) if have == FP8 else None
    return cast_rows(tensor, rows, scales, have, dtype, prod(stored.layout.tensors[tensor].shape[1:]))
