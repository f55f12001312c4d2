"""Moving rows of tensors between files and memory."""

import os
from collections.abc import Iterator
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from megatron_rl.errors import InputError
from megatron_rl.resharding.convert.kernel import Files
from megatron_rl.resharding.fp8_layout import BLOCK, scale_shape
from megatron_rl.resharding.layout import TensorSpec, merged, row_major
from megatron_rl.resharding.plan import position
from megatron_rl.resharding.stored import FP8, Place, Stored

Ints = tuple[int, ...]
_BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32}  # elements as they lie, whatever they mean


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


def _runs(piece: _Piece, band: np.ndarray[Any, Any]) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
    """(byte offset in the file, view of the band) of each part of a piece that is contiguous in the file."""
    depth = len(piece.shape)
    while depth and piece.strides[depth - 1 :] == row_major(piece.shape[depth - 1 :]):
        depth -= 1
    view = np.lib.stride_tricks.as_strided(
        band[piece.band_at :], piece.shape, tuple(step * band.itemsize for step in piece.band_strides)
    )
    for index in product(*(range(n) for n in piece.shape[:depth])):
        at = piece.at + sum(i * step for i, step in zip(index, piece.strides, strict=False))
        within: Any = (*index, ...)  # the dots keep a single element a view
        yield piece.place.offset + at * band.itemsize, view[within]


def read_exactly(files: Files, path: Path, offset: int, into: memoryview) -> None:
    """Fill memory from a file. Raises InputError naming a file that ends too early."""
    handle, done = files.open(path), 0
    while done < len(into):
        count = os.preadv(handle, [into[done:]], offset + done)
        if count == 0:
            raise InputError(f"{path} ends at byte {offset + done}: it became shorter meanwhile.")
        done += count


def write_exactly(files: Files, path: Path, offset: int, content: memoryview) -> None:
    """Write memory to a file of the target."""
    handle, done = files.open(path, os.O_WRONLY), 0
    while done < len(content):
        done += os.pwrite(handle, content[done:], offset + done)


def _bytes(array: np.ndarray[Any, Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def read_rows(files: Files, stored: Stored, tensor: str, first: int, last: int) -> np.ndarray[Any, Any]:
    """Rows [first, last) of a canonical tensor as unsigned integers of its elements' size, flat."""
    spec = stored.layout.tensors[tensor]
    itemsize = stored.places[stored.segments[tensor][0].local].itemsize
    band = np.empty((last - first) * prod(spec.shape[1:]), dtype=_BITS[itemsize])
    for piece in _pieces(stored, tensor, first, last):
        for offset, view in _runs(piece, band):
            if view.flags.c_contiguous:
                read_exactly(files, piece.place.path, offset, _bytes(view))
            else:
                part = np.empty(view.shape, dtype=band.dtype)
                read_exactly(files, piece.place.path, offset, _bytes(part))
                view[...] = part
    return band


def write_rows(files: Files, stored: Stored, tensor: str, first: int, band: np.ndarray[Any, Any]) -> None:
    """Write rows of a canonical tensor, from ``first`` on, wherever the layout keeps them."""
    spec = stored.layout.tensors[tensor]
    last = first + band.size // prod(spec.shape[1:])
    for piece in _pieces(stored, tensor, first, last):
        for offset, view in _runs(piece, band):
            write_exactly(files, piece.place.path, offset, _bytes(np.ascontiguousarray(view)))


def read_scales(files: Files, stored: Stored, tensor: str, first: int, last: int) -> np.ndarray[Any, Any]:
    """The float32 scales of rows [first, last), whole tiles, of an FP8 weight."""
    place, columns = stored.scales[tensor], scale_shape(stored.layout.tensors[tensor].shape)[1]
    top = first // BLOCK
    scales = np.empty((-(-last // BLOCK) - top, columns), dtype=np.float32)
    read_exactly(files, place.path, place.offset + top * columns * 4, _bytes(scales))
    return scales


def rows_as(
    files: Files, stored: Stored, tensor: str, first: int, last: int, dtype: str
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any] | None]:
    """Rows of a tensor in this dtype, and their scales when it is FP8 and the tensor is not.

    FP8 on either side needs rows that begin and end with tiles.
    """
    have = stored.dtypes[tensor]
    rows = read_rows(files, stored, tensor, first, last)
    if have == dtype:
        return rows, None
    from megatron_rl.resharding.convert.casts import cast_rows  # torch, which a mere change of layout does without

    shape = stored.layout.tensors[tensor].shape
    scales = read_scales(files, stored, tensor, first, last) if have == FP8 else None
    return cast_rows(tensor, rows, scales, have, dtype, prod(shape[1:]))


def write_scales(files: Files, stored: Stored, tensor: str, first: int, scales: np.ndarray[Any, Any]) -> None:
    """Write scales, from row ``first`` of tiles on."""
    place = stored.scales[tensor]
    write_exactly(files, place.path, place.offset + first * scales.shape[1] * 4, _bytes(np.ascontiguousarray(scales)))
