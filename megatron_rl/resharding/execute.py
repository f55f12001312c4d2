"""Executing copies between flat tensors, and hashing what they carry.

A hash is xxh3-64 of the box's elements in canonical (row-major) order, in the destination's dtype. The owner of
a box and its receiver compute it each from its own memory, so it also sees permutations, which sums cannot.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import prod

import numpy as np
import torch
import xxhash

from megatron_rl.resharding.layout import merged, row_major
from megatron_rl.resharding.plan import Copy, Ints

Index = tuple[int | slice, ...]  # of a piece of a box
BAND = 1 << 20  # bytes moved or hashed at a time: they stay in the processor's cache between copy and hash


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
    if held.dtype == dtype and held.is_contiguous():
        update(state, held, dtype)
    else:
        for piece in bands(tuple(held.shape), dtype.itemsize):
            update(state, held[piece], dtype)
    return state.intdigest()


def _copy(source: torch.Tensor, destination: torch.Tensor) -> int:
    state = xxhash.xxh3_64()
    for piece in bands(tuple(source.shape), destination.element_size()):
        landed = destination[piece]
        landed.copy_(source[piece])
        update(state, landed, landed.dtype)
    return state.intdigest()


def pull(
    copies: Sequence[Copy],
    sources: Mapping[tuple[int, str], torch.Tensor],
    destinations: Mapping[str, torch.Tensor],
) -> np.ndarray:
    """Execute copies; returns the uint64 hash of what landed, read back from the destination, for each of them.

    ``sources`` by (rank, local name) and ``destinations`` by local name are 1-D; dtypes may differ, the destination's
    holds. Needs at most about 1 MiB of extra memory.
    """
    hashes = np.empty(len(copies), dtype=np.uint64)
    with torch.no_grad():
        for i, c in enumerate(copies):
            shape, (read, write) = merged(c.shape, c.source_strides, c.destination_strides)
            source = box(sources[c.source_rank, c.source], shape, read, c.source_offset)
            hashes[i] = _copy(source, box(destinations[c.destination], shape, write, c.destination_offset))
    return hashes


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


def contiguous(copy: Copy) -> bool:
    """True when the copy is one run of bytes on both sides."""
    shape, strides = merged(copy.shape, copy.source_strides, copy.destination_strides)
    return all(steps == row_major(shape) for steps in strides)
