"""A plan between two stored layouts as work for threads: runs of bytes for the kernel, bands of rows for memory."""

import itertools
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import prod
from typing import NamedTuple

from megatron_rl.errors import InputError
from megatron_rl.resharding.convert.kernel import Run
from megatron_rl.resharding.folders.stored import FP8, ITEMSIZES, Stored
from megatron_rl.resharding.layout import merged, row_major
from megatron_rl.resharding.layouts.fp8 import BLOCK
from megatron_rl.resharding.plan import Copy, Plan

PART = 32 << 20  # bytes between two entries of the journal
SHORTEST_RUN = 16 << 10  # bytes; shorter ones go through memory, many in one read
BAND = 1 << 20  # bytes of the rows that go through memory together: they stay in the processor's cache between
COPIES_OF_A_BAND = 8  # a cast through FP8 needs the rows in float32 and more
LEAST = 4 << 20  # bytes that a thread takes for anything


class Band(NamedTuple):
    """Rows of a tensor that go through memory."""

    tensor: str
    first: int
    last: int


@dataclass
class Part:
    """What one thread does between two entries of the journal."""

    runs: list[Run] = field(default_factory=list)
    bands: list[Band] = field(default_factory=list)
    files: set[str] = field(default_factory=set)
    size: int = 0


class Queue:
    """Parts for several threads; each gets one whose files nobody writes, if there is one. An error ends it for all."""

    def __init__(self, todo: Iterable[tuple[int, Part]]) -> None:
        self._todo = list(todo)
        self._written: Counter[str] = Counter()
        self._lock = threading.Lock()

    def take(self) -> tuple[int, Part] | None:
        """The next part with its number; None when there are no more."""
        with self._lock:
            free = (i for i, (_, part) in enumerate(self._todo) if not any(self._written[f] for f in part.files))
            if not self._todo:
                return None
            number, part = self._todo.pop(next(free, 0))
            self._written.update(part.files)
            return number, part

    def done(self, part: Part) -> None:
        """Nobody works at it any more."""
        with self._lock:
            self._written.subtract(part.files)

    def __enter__(self) -> "Queue":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is not None:
            with self._lock:
                self._todo.clear()


def _rows_together(shape: tuple[int, ...], dtypes: tuple[str, str]) -> int:
    """At most ``BAND`` bytes in either dtype, and whole tiles of FP8."""
    rows = max(BAND // (prod(shape[1:]) * max(ITEMSIZES[d] for d in dtypes)), 1)
    return max(rows // BLOCK, 1) * BLOCK if FP8 in dtypes else rows


def bands(shape: tuple[int, ...], dtypes: tuple[str, str]) -> Iterator[tuple[int, int]]:
    """Rows that go through memory together, [first, last), one after the other."""
    rows = _rows_together(shape, dtypes)
    for first in range(0, shape[0], rows):
        yield first, min(first + rows, shape[0])


def rules() -> list[int]:
    """What, besides the plan and the files, decides which part is which."""
    return [BAND, PART, SHORTEST_RUN]


def threads_within(buffer: int, wanted: int, source: Stored, target: Stored) -> int:
    """How many of the ``wanted`` threads may take bands from one checkpoint to the other in ``buffer`` bytes.

    Raises InputError when one alone needs more: the tiles of wide FP8 weights cannot be had in smaller bands.
    """
    needed, widest = LEAST, ""
    for name, spec in target.layout.tensors.items():
        dtypes = source.dtypes[name], target.dtypes[name]
        itemsize = 4 if FP8 in dtypes else max(ITEMSIZES[d] for d in dtypes)
        rows = min(_rows_together(spec.shape, dtypes), spec.shape[0])
        size = rows * prod(spec.shape[1:]) * itemsize * COPIES_OF_A_BAND
        if size > needed:
            needed, widest = size, name
    if needed > buffer and widest:
        raise InputError(
            f"Rows of tensor {widest} take up to {-(-needed >> 20)} MiB of memory on their way, and the buffer has "
            f"{buffer >> 20}: set --buffer-size={-(-needed >> 20)}MiB or more."
        )
    return max(min(wanted, buffer // needed), 1)


def make_parts(plan: Plan, source: Stored, target: Stored) -> list[Part]:
    """Every part, file after file: the same ones whatever the threads and the memory that will work at them."""
    copies: dict[str, list[Copy]] = defaultdict(list)
    for copy in plan.copies:
        copies[copy.tensor].append(copy)
    by_file: dict[str, list[Part]] = defaultdict(list)
    for name, here in copies.items():
        dtypes = source.dtypes[name], target.dtypes[name]
        if dtypes[0] == dtypes[1] and all(_in_kernel(c, ITEMSIZES[dtypes[0]]) for c in here):
            for copy in here:
                for run in _runs(copy, source, target):
                    _add_run(by_file, run)
        else:
            for first, last in bands(plan.tensors[name].shape, dtypes):
                _add_band(by_file, Band(name, first, last), target)
    return [part for parts in by_file.values() for part in parts]


def _room(by_file: dict[str, list[Part]], file: str, size: int) -> Part:
    """The part of a file that has room for ``size`` more bytes."""
    parts = by_file[file]
    if not parts or parts[-1].size + size > PART:
        parts.append(Part())
    parts[-1].size += size
    parts[-1].files.add(file)
    return parts[-1]


def _add_run(by_file: dict[str, list[Part]], run: Run) -> None:
    _room(by_file, str(run.destination), run.size).runs.append(run)


def _add_band(by_file: dict[str, list[Part]], band: Band, target: Stored) -> None:
    files = {str(target.places[s.local].path) for s in target.segments[band.tensor]}
    if band.tensor in target.scales:
        files.add(str(target.scales[band.tensor].path))
    width = prod(target.layout.tensors[band.tensor].shape[1:]) * ITEMSIZES[target.dtypes[band.tensor]]
    part = _room(by_file, min(files), (band.last - band.first) * width)
    part.bands.append(band)
    part.files |= files


def _inner(copy: Copy) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...], int]:
    """A copy's box with as few dimensions as possible, its strides, and how many dimensions enclose the runs."""
    shape, strides = merged(copy.shape, copy.source_strides, copy.destination_strides)
    depth = len(shape)
    while depth and all(steps[depth - 1 :] == row_major(shape[depth - 1 :]) for steps in strides):
        depth -= 1
    return shape, strides, depth


def _in_kernel(copy: Copy, itemsize: int) -> bool:
    shape, _, depth = _inner(copy)
    return depth == 0 or prod(shape[depth:]) * itemsize >= SHORTEST_RUN


def _runs(copy: Copy, source: Stored, target: Stored) -> Iterator[Run]:
    shape, (read, write), depth = _inner(copy)
    here, there = source.places[copy.source], target.places[copy.destination]
    size = prod(shape[depth:]) * here.itemsize
    for index in itertools.product(*(range(n) for n in shape[:depth])):
        a, b = (sum(i * step for i, step in zip(index, steps, strict=False)) for steps in (read, write))
        begin = here.offset + (copy.source_offset + a) * here.itemsize
        end = there.offset + (copy.destination_offset + b) * here.itemsize
        for at in range(0, size, PART):
            yield Run(here.path, begin + at, there.path, end + at, min(PART, size - at))
