"""Executing copies between flat tensors, and hashing what they carry.

A hash is xxh3-64 of the box's elements in canonical (row-major) order, in the destination's dtype. The owner of
a box and its receiver compute it each from its own memory, so it also sees permutations, which sums cannot.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import Any

import numpy as np
import torch
import xxhash

from megatron_rl.resharding.layout import merged
from megatron_rl.resharding.plan import Copy, Ints

Index = tuple[int | slice, ...]  # of a piece of a box
BAND = 1 << 19  # bytes moved or hashed at a time: they stay in a core's own cache between copy and hash
_ROW = BAND >> 3  # bytes of a row, at most, that is copied as one element
# The same where several threads copy: numpy holds Python's lock for fewer than 500 elements; a piece has 512 of these.
_SHARED_ROW = 512
_CARRIERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # elements as they lie, for numpy


def flat(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous tensor as 1-D, without copying; ValueError when it is not contiguous."""
    if not tensor.is_contiguous():
        raise ValueError(f"a tensor of shape {tuple(tensor.shape)} and strides {tensor.stride()} is not contiguous")
    return tensor.detach().view(-1)


def box(tensor: torch.Tensor, shape: Ints, strides: Ints, offset: int) -> torch.Tensor:
    """A strided box of a flat tensor, as a view."""
    # as_strided counts from the storage's start, and parameters may lie anywhere in a shared one.
    return tensor.as_strided(shape, strides, int(tensor.storage_offset()) + offset)


def bands(shape: Ints, itemsize: int, limit: int = BAND) -> Iterator[Index]:
    """Indices that cut a box, in row-major order, into pieces of at most ``limit`` bytes (one element at least)."""
    row = itemsize * prod(shape[1:])
    if row > limit and len(shape) > 1:
        for i in range(shape[0]):
            for rest in bands(shape[1:], itemsize, limit):
                yield (i, *rest)
    else:
        step = max(limit // row, 1)
        for begin in range(0, shape[0], step):
            yield (slice(begin, min(begin + step, shape[0])),)


def _memory(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor, shared where it lies in host memory."""
    return tensor.cpu().view(-1).view(torch.uint8).numpy().data


def update(state: xxhash.xxh3_64, piece: torch.Tensor, dtype: torch.dtype) -> None:
    """Continue a hash with a piece's elements in row-major order, as numbers of ``dtype``."""
    if piece.dtype == dtype and piece.is_contiguous():
        state.update(_memory(piece))
    else:
        state.update(_memory(piece.to(dtype).contiguous()))


def digest(held: torch.Tensor, dtype: torch.dtype | None = None) -> int:
    """The hash of a box's elements in row-major order, as numbers of ``dtype`` (its own when left out)."""
    dtype = dtype or held.dtype
    state = xxhash.xxh3_64()
    hash_box(held, dtype, state)
    return state.intdigest()


class Pull:
    """Copies that are executed again and again, made ready once.

    ``sources`` by (rank, local name) and ``destinations`` by local name are 1-D; dtypes may differ, the destination's
    holds. Their memory stays where it is from now on. Needs at most about 1 MiB more for each of
    ``torch.get_num_threads()`` threads.
    """

    def __init__(
        self,
        copies: Sequence[Copy],
        sources: Mapping[tuple[int, str], torch.Tensor],
        destinations: Mapping[str, torch.Tensor],
    ) -> None:
        self._pairs: list[tuple[Any, Any]] = []
        for c in copies:
            shape, (read, write) = merged(c.shape, c.source_strides, c.destination_strides)
            source = box(sources[c.source_rank, c.source], shape, read, c.source_offset)
            landed = box(destinations[c.destination], shape, write, c.destination_offset)
            self._pairs.append(_bits(source, landed) or (source, landed))
        # The longest first: a copy has one hash, so one thread takes all of it.
        self._order = sorted(range(len(copies)), key=lambda i: -copies[i].elements)

    def __call__(self) -> np.ndarray:
        """The uint64 hash of what landed, read back from the destination, for each copy."""
        hashes = np.empty(len(self._pairs), dtype=np.uint64)
        left = iter(self._order)

        def work(_: int) -> None:
            room = np.empty(BAND // 2, dtype=np.uint8)
            for i in left:
                hashes[i] = _copy(*self._pairs[i], xxhash.xxh3_64(), room)

        if (threads := min(torch.get_num_threads(), len(self._order))) > 1:
            with ThreadPoolExecutor(threads) as pool:
                deque(pool.map(work, range(threads)), maxlen=0)
        else:
            work(0)
        return hashes


def pull(
    copies: Sequence[Copy],
    sources: Mapping[tuple[int, str], torch.Tensor],
    destinations: Mapping[str, torch.Tensor],
) -> np.ndarray:
    """Execute copies once, see ``Pull``."""
    return Pull(copies, sources, destinations)()


def land(source: torch.Tensor, landed: torch.Tensor, state: xxhash.xxh3_64) -> None:
    """Copy one box into another of its shape, and continue a hash with what landed there."""
    read, write = _bits(source, landed) or (source, landed)
    _copy(read, write, state, np.empty(BAND // 2, dtype=np.uint8))


def copy_box(source: torch.Tensor, landed: torch.Tensor) -> None:
    """Copy one box into another of its shape; into a GPU's memory without waiting."""
    if pair := _bits(source, landed):
        pair[1][...] = pair[0]
    else:
        landed.copy_(source, non_blocking=landed.is_cuda)


def hash_box(held: torch.Tensor, dtype: torch.dtype, state: xxhash.xxh3_64) -> None:
    """Continue a hash with a box's elements in row-major order, as numbers of ``dtype``."""
    if held.dtype == dtype and held.is_contiguous():
        update(state, held, dtype)
    else:
        for piece in bands(tuple(held.shape), dtype.itemsize):
            update(state, held[piece], dtype)


def _bits(source: torch.Tensor, landed: torch.Tensor) -> tuple[np.ndarray, np.ndarray] | None:
    """Two boxes of one dtype in host memory as numpy's: its copies of whole rows are the C library's.

    Torch's are not, and take a fifth longer in a cache. Rows that are runs on both sides become one element each.
    """
    if source.dtype != landed.dtype or source.device.type != "cpu" or landed.device.type != "cpu":
        return None
    width = landed.element_size()
    pair = [t.detach().view(_CARRIERS[width]).numpy() for t in (source, landed)]
    row = width * source.shape[-1]
    longest = _ROW if torch.get_num_threads() == 1 else _SHARED_ROW
    if source.dim() > 1 and source.stride(-1) == landed.stride(-1) == 1 and row <= longest:
        pair = [bits.view(f"V{row}")[..., 0] for bits in pair]
    return pair[0], pair[1]


def _copy(source: Any, landed: Any, state: xxhash.xxh3_64, room: np.ndarray) -> int:
    """Copy and hash in turn; ``room``: for the rows of a piece."""
    if isinstance(landed, torch.Tensor):
        with torch.no_grad():
            for piece in bands(tuple(source.shape), landed.element_size()):
                place = landed[piece]
                place.copy_(source[piece])
                update(state, place, place.dtype)
        return state.intdigest()
    whole = landed.flags.c_contiguous
    for piece in bands(source.shape, landed.itemsize, BAND if whole else BAND // 2):  # rows share it with ``room``
        place = landed[piece]
        place[...] = source[piece]
        if not whole and not place.flags.c_contiguous:
            held = room[: place.nbytes].view(place.dtype).reshape(place.shape)
            held[...] = place
            place = held
        state.update(place)
    return state.intdigest()


def held_hashes(copies: Sequence[Copy], destinations: Mapping[str, torch.Tensor]) -> np.ndarray:
    """The uint64 hash of what lies where each copy lands; ``destinations`` by local name are 1-D."""
    hashes = np.empty(len(copies), dtype=np.uint64)
    with torch.no_grad():
        for i, c in enumerate(copies):
            shape, (steps,) = merged(c.shape, c.destination_strides)
            hashes[i] = digest(box(destinations[c.destination], shape, steps, c.destination_offset))
    return hashes


def source_hashes(
    copies: Sequence[Copy], sources: Mapping[str, torch.Tensor], dtypes: Mapping[str, torch.dtype] | torch.dtype | None
) -> np.ndarray:
    """The uint64 hash of each copy from its owner's side.

    ``sources`` by local name are 1-D and of one rank. ``dtypes`` is what the destination holds: one dtype, one per
    destination tensor, or None for the source's own.
    """
    hashes = np.empty(len(copies), dtype=np.uint64)
    with torch.no_grad():
        for i, c in enumerate(copies):
            tensor = sources[c.source]
            dtype = dtypes[c.destination] if isinstance(dtypes, Mapping) else dtypes or tensor.dtype
            shape, (steps,) = merged(c.shape, c.source_strides)
            held = box(tensor, shape, steps, c.source_offset)
            hashes[i] = digest(held, dtype)
    return hashes
