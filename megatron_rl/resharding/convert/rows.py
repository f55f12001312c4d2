"""Moving rows of tensors between files and memory. The kernel brings them together and takes them apart."""

import os
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from megatron_rl.errors import InputError
from megatron_rl.resharding.convert.kernel import Files
from megatron_rl.resharding.fp8_layout import BLOCK, scale_shape
from megatron_rl.resharding.layout import TensorSpec, merged, row_major
from megatron_rl.resharding.plan import position
from megatron_rl.resharding.stored import FP8, ITEMSIZES, Place, Stored

if TYPE_CHECKING:
    import numpy as np  # which a change of layout does without: its import takes as long as some models to copy

Ints = tuple[int, ...]
VECTORS = 1024  # pieces of memory in one call: the kernel's limit
PORTION = (
    1 << 16
)  # bytes in one call: with more at a time Linux looks for larger pages, which takes longer than copying


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


def _runs(piece: _Piece, band: memoryview, itemsize: int) -> Iterator[tuple[int, int, Iterator[memoryview]]]:
    """(byte offset in the file, bytes, where these lie in the band) of each part that is contiguous in the file."""
    depth = inner = len(piece.shape)
    while depth and piece.strides[depth - 1 :] == row_major(piece.shape[depth - 1 :]):
        depth -= 1
    while inner > depth and piece.band_strides[inner - 1 :] == row_major(piece.shape[inner - 1 :]):
        inner -= 1
    size = prod(piece.shape[inner:]) * itemsize
    steps = [range(0, n * step, step) for n, step in zip(piece.shape, piece.band_strides, strict=True)]
    within = [sum(index) * itemsize for index in product(*steps[depth:inner])]
    for index in product(*(range(n) for n in piece.shape[:depth])):
        at = piece.at + sum(i * step for i, step in zip(index, piece.strides, strict=False))
        start = piece.band_at + sum(i * step for i, step in zip(index, piece.band_strides, strict=False))
        begin = start * itemsize
        views = (band[begin + other : begin + other + size] for other in within)
        yield piece.place.offset + at * itemsize, size * len(within), views


def _calls(views: Iterable[memoryview], at: int) -> Iterator[list[memoryview]]:
    """Memory in the portions of one system call each, which end where the file has a multiple of ``PORTION``."""
    some: list[memoryview] = []
    left = PORTION - at % PORTION
    for view in views:
        while view:
            some.append(view[:left])
            view, left = view[left:], left - len(some[-1])
            if left == 0 or len(some) == VECTORS:
                yield some
                some, left = [], left or PORTION
    if some:
        yield some


def _transfer(call: Callable[[int, Any, int], int], handle: int, views: Iterable[memoryview], at: int) -> int:
    """Have all bytes read or written, from byte ``at`` of the file on; how far it got: less where the file ends."""
    for some in _calls(views, at):
        left = sum(map(len, some))
        while left:
            count = call(handle, some, at)
            if not count:
                return at
            at, left = at + count, left - count
            while left and count:  # the rest of a call that was cut short
                done = min(count, len(some[0]))
                some[:1] = [some[0][done:]] if done < len(some[0]) else []
                count -= done
    return at


def read_exactly(files: Files, path: Path, offset: int, size: int, into: Iterable[memoryview]) -> None:
    """Fill memory of so many bytes from a file. Raises InputError naming a file that ends too early."""
    end = _transfer(os.preadv, files.open(path), into, offset)
    if end != offset + size:
        raise InputError(f"{path} ends at byte {end}: it became shorter meanwhile.")


def write_exactly(files: Files, path: Path, offset: int, content: Iterable[memoryview]) -> None:
    """Write memory to a file of the target."""
    with files.turn(path):
        _transfer(os.pwritev, files.open(path, os.O_WRONLY), content, offset)


def read_rows(files: Files, stored: Stored, tensor: str, first: int, last: int) -> memoryview:
    """The bytes of rows [first, last) of a canonical tensor, brought together by the kernel."""
    spec = stored.layout.tensors[tensor]
    itemsize = stored.places[stored.segments[tensor][0].local].itemsize
    band = memoryview(bytearray((last - first) * prod(spec.shape[1:]) * itemsize))
    for piece in _pieces(stored, tensor, first, last):
        for offset, size, views in _runs(piece, band, itemsize):
            read_exactly(files, piece.place.path, offset, size, views)
    return band


def write_rows(files: Files, stored: Stored, tensor: str, first: int, band: memoryview) -> None:
    """Write the bytes of rows of a canonical tensor, from ``first`` on, wherever the layout keeps them."""
    spec = stored.layout.tensors[tensor]
    itemsize = stored.places[stored.segments[tensor][0].local].itemsize
    last = first + len(band) // (prod(spec.shape[1:]) * itemsize)
    for piece in _pieces(stored, tensor, first, last):
        for offset, _, views in _runs(piece, band, itemsize):
            write_exactly(files, piece.place.path, offset, views)


def read_scales(files: Files, stored: Stored, tensor: str, first: int, last: int) -> "np.ndarray[Any, Any]":
    """The float32 scales of rows [first, last), whole tiles, of an FP8 weight."""
    import numpy as np

    place, columns = stored.scales[tensor], scale_shape(stored.layout.tensors[tensor].shape)[1]
    top = first // BLOCK
    scales = np.empty((-(-last // BLOCK) - top, columns), dtype=np.float32)
    into = scales.reshape(-1).view(np.uint8).data
    read_exactly(files, place.path, place.offset + top * columns * 4, len(into), [into])
    return scales


def rows_as(
    files: Files, stored: Stored, tensor: str, first: int, last: int, dtype: str
) -> "tuple[memoryview, np.ndarray[Any, Any] | None]":
    """The bytes of rows of a tensor in this dtype, and their scales when it is FP8 and the tensor is not.

    FP8 on either side needs rows that begin and end with tiles.
    """
    have = stored.dtypes[tensor]
    rows = read_rows(files, stored, tensor, first, last)
    if have == dtype:
        return rows, None
    from megatron_rl.resharding.convert.casts import cast_rows  # torch, which a mere change of layout does without

    shape = stored.layout.tensors[tensor].shape
    scales = read_scales(files, stored, tensor, first, last) if have == FP8 else None
    cast, scales = cast_rows(tensor, as_integers(rows, have), scales, have, dtype, prod(shape[1:]))
    return cast.data.cast("B"), scales


def as_integers(rows: memoryview, dtype: str) -> "np.ndarray[Any, Any]":
    """Elements as they lie, whatever they mean: unsigned integers of their size, flat."""
    import numpy as np

    return np.frombuffer(rows, dtype=f"u{ITEMSIZES[dtype]}")


def write_scales(files: Files, stored: Stored, tensor: str, first: int, scales: "np.ndarray[Any, Any]") -> None:
    """Write scales, from row ``first`` of tiles on."""
    place = stored.scales[tensor]
    content = memoryview(scales.tobytes())
    write_exactly(files, place.path, place.offset + first * scales.shape[1] * 4, [content])
