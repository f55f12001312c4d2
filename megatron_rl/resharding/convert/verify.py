"""Comparing two checkpoints of either kind tensor by tensor, by streaming, in bounded memory."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from megatron_rl.errors import InputError
from megatron_rl.resharding.convert.kernel import Files
from megatron_rl.resharding.convert.parts import Band, bands, threads_within
from megatron_rl.resharding.convert.rows import read_rows, read_scales, rows_as
from megatron_rl.resharding.convert.unfit import UnfitError
from megatron_rl.resharding.folders.stored import FP8, ITEMSIZES, Stored, UnlikeError
from megatron_rl.resharding.layouts.fp8 import BLOCK, SCALE, scale_shape
from megatron_rl.resharding.plan import check_same_tensors


@dataclass(frozen=True)
class Difference:
    """The first element that differs: its tensor and index, and what it is and should be."""

    tensor: str
    index: tuple[int, ...]
    expected: float
    found: float

    def __str__(self) -> str:
        return f"{self.tensor}{list(self.index)} is {self.expected!r} in the first and {self.found!r} in the second"


def first_difference(
    first: Stored, second: Stored, *, buffer: int, threads: int, progress: Callable[[int], None] = lambda size: None
) -> Difference | None:
    """Where ``second`` is not, bit for bit, what converting ``first`` to its dtypes gives; None when it is everywhere.

    A number of the first that the second's dtype cannot hold is a difference, whatever the second has there. Tensors
    are compared in the order of the forward pass. ``progress`` is told how many bytes more of the second are compared.
    Raises UnlikeError when they do not have the same tensors.
    """
    try:
        check_same_tensors(first.layout, second.layout, (str(first.folder), str(second.folder)))
    except InputError as error:
        raise UnlikeError(str(error)) from error
    threads = threads_within(buffer, threads, first, second)
    todo = (
        Band(name, *rows)
        for name, spec in second.layout.tensors.items()
        for rows in bands(spec.shape, (first.dtypes[name], second.dtypes[name]))
    )
    with ThreadPoolExecutor(threads) as pool:
        for band, difference in _in_order(pool, lambda band: _compare(first, second, band), todo, 4 * threads):
            if difference is not None:
                pool.shutdown(cancel_futures=True)
                return difference
            width = prod(second.layout.tensors[band.tensor].shape[1:])
            progress((band.last - band.first) * width * ITEMSIZES[second.dtypes[band.tensor]])
    return None


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[Band], Difference | None], todo: Iterator[Band], ahead: int
) -> Iterator[tuple[Band, Difference | None]]:
    """Results in the order of the work, with so many under way."""
    waiting: deque[tuple[Band, Future[Difference | None]]] = deque()
    for band in islice(todo, ahead):
        waiting.append((band, pool.submit(work, band)))
    while waiting:
        band, future = waiting.popleft()
        yield band, future.result()
        for following in islice(todo, 1):
            waiting.append((following, pool.submit(work, following)))


def _compare(first: Stored, second: Stored, band: Band) -> Difference | None:
    name, low, high = band
    dtype, shape = second.dtypes[name], second.layout.tensors[name].shape
    with Files(Path()) as files:
        lost: UnfitError | None = None
        try:
            expected, scales = rows_as(files, first, name, low, high, dtype)
        except UnfitError as error:  # no number of this dtype is what the first has
            lost, (expected, scales) = error, error.result
        found = read_rows(files, second, name, low, high)
        base = low * prod(shape[1:])
        at = _first(expected, found)
        if lost is not None and (at is None or lost.at <= at):
            return Difference(name, _index(lost.at + base, shape), lost.value, _number(found[lost.at :], dtype))
        if at is not None:
            return Difference(name, _index(at + base, shape), _number(expected[at:], dtype), _number(found[at:], dtype))
        if dtype != FP8:
            return None
        if scales is None:
            scales = read_scales(files, first, name, low, high)
        theirs = read_scales(files, second, name, low, high).reshape(-1)
        if (at := _first(scales.reshape(-1).view(np.uint32), theirs.view(np.uint32))) is None:
            return None
        grid = scale_shape(shape)
        top = _index(at + low // BLOCK * grid[1], grid)
        return Difference(name + SCALE, top, float(scales.reshape(-1)[at]), float(theirs[at]))


def _first(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> int | None:
    """Position of the first of two flat arrays' elements that differ."""
    if np.array_equal(a, b):
        return None
    return int(np.argmax(a != b))


def _index(position: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(position, shape))


def _number(bits: np.ndarray[Any, Any], dtype: str) -> float:
    """The value of the first element."""
    if dtype == "BF16":
        return float((bits[:1].astype(np.uint32) << 16).view(np.float32)[0])
    if dtype != FP8:
        return float(bits.view({"F16": np.float16, "F32": np.float32}[dtype])[0])
    sign, exponent, fraction = int(bits[0]) >> 7, int(bits[0]) >> 3 & 15, int(bits[0]) & 7
    if (exponent, fraction) == (15, 7):
        return float("nan")
    magnitude = fraction / 512 if exponent == 0 else (1 + fraction / 8) * 2.0 ** (exponent - 7)
    return -magnitude if sign else magnitude
