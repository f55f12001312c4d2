"""What a swap does in GPU memory, in Triton: runs of bytes copied, and the sums of ``device_hash``.

A launch works through a table of addresses, which is made once, so a whole plan takes a few launches whatever the
number of its tensors. Sums are of integers modulo 2**64: the order in which they are added does not matter.
"""

import numpy as np
import torch
import triton
import triton.language as tl

COPIED = 1 << 20  # bytes of a run that one row of the table stands for
COPY_TILE = 2048  # words that one program copies
SUM_TILE = 2048  # elements that one program multiplies where it has no whole words
WORD_TILE = 1024  # words that one program takes apart, of each of TOGETHER rows: keys are loaded once for all of them
WORD_PART = 128  # of these, at a time
TOGETHER = 8
VECTOR = 16  # bytes that are moved together where both addresses allow it
_WORD = 8  # bytes
_WORDS = {VECTOR: tl.int64, 8: tl.int64, 4: tl.int32, 2: tl.int16, 1: tl.int8}
_NUMBERS = {1: tl.uint8, 2: tl.int16, 4: tl.int32}  # elements as they lie, as device_hash reads them


@triton.jit
def _copy(table, word: tl.constexpr, tile: tl.constexpr, whole: tl.constexpr, vectors: tl.constexpr):
    row = table + 3 * tl.program_id(0).to(tl.int64)
    words = tl.load(row + 2)
    at = tl.program_id(1) * tile + tl.arange(0, tile)
    source = tl.load(row).to(tl.pointer_type(word)) + at
    destination = tl.load(row + 1).to(tl.pointer_type(word)) + at
    if whole:
        if tl.program_id(1) * tile < words:
            if vectors:
                source = tl.max_contiguous(tl.multiple_of(source, 16), tile)
                destination = tl.max_contiguous(tl.multiple_of(destination, 16), tile)
            tl.store(destination, tl.load(source))
    else:
        tl.store(destination, tl.load(source, mask=at < words), mask=at < words)


@triton.jit
def _sum_words(
    table, keys, sums, rows, stride, bits: tl.constexpr, signed: tl.constexpr, tile: tl.constexpr, part: tl.constexpr,
    together: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * together + tl.arange(0, together)
    there = row < rows
    words = tl.load(table + 4 * row + 1, mask=there, other=0)
    first = tl.program_id(1) * tile
    if first < tl.max(words, 0):
        place = tl.load(table + 4 * row, mask=there, other=0).to(tl.pointer_type(tl.int64))[:, None]
        found = tl.zeros([together, part], tl.int64)
        for begin in range(0, tile, part):
            at = first + begin + tl.arange(0, part)
            word = tl.load(place + at[None, :], mask=at[None, :] < words[:, None], other=0)
            for i in tl.static_range(64 // bits):
                if signed:  # noqa: SIM108 (a choice when it is compiled)
                    number = (word << (64 - bits * (i + 1))) >> (64 - bits)
                else:
                    number = (word >> (bits * i)) & ((1 << bits) - 1)
                found += number * tl.load(keys + i * stride + at)[None, :]
        to = sums + tl.load(table + 4 * row + 3, mask=there, other=0)
        tl.atomic_add(to, tl.sum(found, 1), mask=there & (first < words))


@triton.jit
def _sum(table, keys, sums, number: tl.constexpr, tile: tl.constexpr):
    row = table + 4 * tl.program_id(0).to(tl.int64)
    count = tl.load(row + 1)
    first = tl.program_id(1) * tile
    if first < count:
        at = first + tl.arange(0, tile)
        elements = tl.load(row).to(tl.pointer_type(number)) + at
        numbers = tl.load(elements, mask=at < count, other=0).to(tl.int64)
        found = numbers * tl.load(keys + tl.load(row + 2) + at, mask=at < count, other=0)
        tl.atomic_add(sums + tl.load(row + 3), tl.sum(found, 0))


class Runs:
    """Runs of bytes from one place in GPU memory to another, copied by two launches for each width of word."""

    def __init__(self, runs: np.ndarray, device: torch.device) -> None:
        """``runs``: addresses to read and to write, and bytes (int64 [n, 3])."""
        self._tables: list[tuple[int, bool, torch.Tensor]] = []  # width, whole tiles or less than one
        low = np.bitwise_or.reduce(runs, 1)
        width = np.select([low % w == 0 for w in _WORDS], list(_WORDS))
        for w in _WORDS:
            mine = runs[width == w]
            tile = COPY_TILE * _bytes(w)
            whole = mine[:, 2] // tile * tile
            long = _pieces(mine[whole > 0], whole[whole > 0], COPIED)
            short = np.stack([mine[:, 0] + whole, mine[:, 1] + whole, mine[:, 2] - whole], 1)[whole < mine[:, 2]]
            for part, is_whole in ((long, True), (short, False)):
                if len(part):
                    part[:, 2] //= _bytes(w)
                    self._tables.append((w, is_whole, torch.from_numpy(np.ascontiguousarray(part)).to(device)))

    def copy(self) -> None:
        """Begin the copies on the current stream."""
        for width, whole, table in self._tables:
            grid = len(table), COPIED // (COPY_TILE * _bytes(width)) if whole else 1
            _copy[grid](table, word=_WORDS[width], tile=COPY_TILE, whole=whole, vectors=width == VECTOR)


class Sums:
    """Sums of elements times keys, which are taken again and again where the elements lie."""

    def __init__(self, runs: np.ndarray, width: int, keys: torch.Tensor) -> None:
        """``runs``: address, elements, number of its first element's key and of the sum that it belongs to (int64
        [n, 4]); none goes beyond the last key. ``width``: bytes of an element."""
        self._width, self._keys, each = width, keys, _WORD // width
        if len(keys) % (WORD_TILE * each):
            raise ValueError(f"a period of {len(keys)} elements is not a multiple of {WORD_TILE * each}")
        # Words that begin with the first key share the keys with other rows, which lie by their places in a word.
        self._by_place = keys.view(-1, each).t().contiguous()
        words = np.where((runs[:, 0] % _WORD == 0) & (runs[:, 2] == 0), runs[:, 1] // each, 0)
        whole, rest = runs.copy(), runs + words[:, None] * np.array([_WORD, -each, each, 0])
        whole[:, 1] = words
        self._whole = _by_length(whole, WORD_TILE, keys.device)
        self._rest = _by_length(rest, SUM_TILE, keys.device)

    def add(self, sums: torch.Tensor) -> None:
        """Begin to add them to ``sums`` (int64) on the current stream."""
        for table, tiles in self._whole:
            _sum_words[triton.cdiv(len(table), TOGETHER), tiles](
                *(table, self._by_place, sums, len(table), self._by_place.stride(0)),
                bits=8 * self._width,
                signed=self._width > 1,
                tile=WORD_TILE,
                part=WORD_PART,
                together=TOGETHER,
            )
        for table, tiles in self._rest:
            _sum[len(table), tiles](table, self._keys, sums, number=_NUMBERS[self._width], tile=SUM_TILE)


def _by_length(runs: np.ndarray, tile: int, device: torch.device) -> list[tuple[torch.Tensor, int]]:
    """Those of no more than a tile, and the longer ones; with each table the tiles of its longest."""
    length = runs[:, 1]
    parts = runs[(length > 0) & (length <= tile)], runs[length > tile]
    return [(torch.from_numpy(p).to(device), triton.cdiv(int(p[:, 1].max()), tile)) for p in parts if len(p)]


def _bytes(width: int) -> int:
    """Bytes of one word of this width: vectors are of words of eight."""
    return min(width, _WORD)


def _pieces(runs: np.ndarray, sizes: np.ndarray, limit: int) -> np.ndarray:
    """The first ``sizes`` bytes of every run, in pieces of at most ``limit``."""
    counts = -(-sizes // limit)
    begin = (np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)) * limit
    read, write, size = (np.repeat(column, counts) for column in (runs[:, 0], runs[:, 1], sizes))
    return np.stack([read + begin, write + begin, np.minimum(limit, size - begin)], 1)
