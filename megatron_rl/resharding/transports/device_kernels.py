"""What a swap does in GPU memory, in Triton: runs of bytes copied, and the sums of ``device_hash``.

A launch works through a table of addresses, so a whole plan takes one launch of each, whatever the number of its
tensors. Sums are of integers modulo 2**64: the order in which they are added does not matter.
"""

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl

COPIED = 1 << 20  # bytes of a run that one row of the table stands for
COPY_TILE = 2048  # words that one program copies
SUM_TILE = 2048  # elements that one program multiplies, of each of TOGETHER rows: keys are loaded once for all of them
TOGETHER = 8
_WORDS = {8: tl.int64, 4: tl.int32, 2: tl.int16, 1: tl.int8}
_NUMBERS = {1: tl.uint8, 2: tl.int16, 4: tl.int32}  # elements as they lie, as device_hash reads them


@triton.jit
def _copy(table, word: tl.constexpr, tile: tl.constexpr):
    row = table + 3 * tl.program_id(0).to(tl.int64)
    source = tl.load(row).to(tl.pointer_type(word))
    destination = tl.load(row + 1).to(tl.pointer_type(word))
    words = tl.load(row + 2)
    at = tl.program_id(1) * tile + tl.arange(0, tile)
    tl.store(destination + at, tl.load(source + at, mask=at < words), mask=at < words)


@triton.jit
def _sum(table, keys, sums, rows, number: tl.constexpr, tile: tl.constexpr, together: tl.constexpr):
    begin = tl.program_id(1) * tile
    at = begin + tl.arange(0, tile)
    key = tl.load(keys + at)
    for i in range(together):
        row = tl.program_id(0).to(tl.int64) * together + i
        if row < rows:
            count = tl.load(table + 3 * row + 1)
            if begin < count:
                elements = tl.load(table + 3 * row).to(tl.pointer_type(number))
                numbers = tl.load(elements + at, mask=at < count, other=0).to(tl.int64)
                tl.atomic_add(sums + tl.load(table + 3 * row + 2), tl.sum(numbers * key, 0))


class Runs:
    """Runs of bytes from one place in GPU memory to another, copied by one launch for each width of word."""

    def __init__(self, runs: Sequence[tuple[int, int, int]], device: torch.device) -> None:
        """``runs``: addresses to read and to write, and bytes."""
        rows: dict[int, list[np.ndarray]] = {}
        for source, destination, size in runs:
            width = next(w for w in _WORDS if source % w == destination % w == size % w == 0)
            at = np.arange(0, size, COPIED)
            part = np.stack([source + at, destination + at, np.minimum(COPIED, size - at) // width], 1)
            rows.setdefault(width, []).append(part)
        self._tables = {w: torch.from_numpy(np.concatenate(parts)).to(device) for w, parts in rows.items()}

    def copy(self) -> None:
        """Begin the copies on the current stream."""
        for width, table in self._tables.items():
            grid = len(table), triton.cdiv(COPIED // width, COPY_TILE)
            _copy[grid](table, word=_WORDS[width], tile=COPY_TILE)


def period_sums(tensors: Sequence[torch.Tensor], keys: torch.Tensor) -> list[torch.Tensor]:
    """For every contiguous tensor the sums of its elements times ``keys`` (int64 [period]), period by period.

    int64 [ceil(elements / period)] each, on the device of ``keys``; begun on the current stream, with one launch for
    each size of element.
    """
    period = len(keys)
    if period % SUM_TILE:
        raise ValueError(f"a period of {period} elements is not a multiple of {SUM_TILE}")
    counts = [-(-tensor.numel() // period) for tensor in tensors]
    starts = np.cumsum([0, *counts])
    found = torch.zeros(int(starts[-1]), dtype=torch.int64, device=keys.device)
    rows: dict[int, list[np.ndarray]] = {}
    for tensor, start in zip(tensors, starts, strict=False):
        size, width = tensor.numel(), tensor.element_size()
        at = np.arange(0, size, period)
        part = np.stack([tensor.data_ptr() + at * width, np.minimum(period, size - at), start + at // period], 1)
        rows.setdefault(width, []).append(part)
    for width, parts in rows.items():
        table = torch.from_numpy(np.concatenate(parts)).to(keys.device)
        grid = triton.cdiv(len(table), TOGETHER), period // SUM_TILE
        _sum[grid](table, keys, found, len(table), number=_NUMBERS[width], tile=SUM_TILE, together=TOGETHER)
    return list(found.split(counts))
