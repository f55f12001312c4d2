"""How the copies between two ranks are cut into messages of bounded size.

A pure function of the plan, so that both ends know every chunk without a word: its pieces, where they lie in it, and
its length. Pieces stand in the order of the copies, each copy's in row-major order. Small ones are packed together; a
large one is a chunk by itself, which either end may keep where it is if it is one run of bytes there.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
import xxhash

from megatron_rl.errors import InputError
from megatron_rl.resharding.execute import Index, bands
from megatron_rl.resharding.layout import merged
from megatron_rl.resharding.plan import Copy, Ints, Plan
from megatron_rl.resharding.transports.endpoints import Endpoints

SLOTS = 2  # of a link at each end
AHEAD = 8  # messages of a link, at most, that are under way at once
ALIGNMENT = 16  # bytes: every piece begins at a multiple
ALONE = 64 << 10  # bytes from which on a piece is a chunk by itself
SMALLEST = 256  # bytes of a chunk


class Piece(NamedTuple):
    """A part of a copy in a chunk."""

    copy: int  # number among the link's copies
    shape: Ints  # of the whole copy, in as few dimensions as possible
    source_strides: Ints  # elements
    destination_strides: Ints
    part: Index  # what the piece is of it
    offset: int  # byte in the chunk
    size: int  # bytes
    last: bool  # the copy ends here


class Chunk(NamedTuple):
    """What travels as one message."""

    pieces: tuple[Piece, ...]
    size: int  # bytes


def chunk_bytes(plan: Plan, source: int, destination: int, buffer: int) -> int:
    """Bytes of a chunk between two ranks, so that one chunk for each of a rank's links fits ``buffer`` at both ends.

    Raises InputError where that leaves less than 256 bytes.
    """
    destinations = {plan.copies[i].destination_rank for i in plan.copies_from(source)}
    sources = {plan.copies[i].source_rank for i in plan.copies_to(destination)}
    links = max(len(destinations), len(sources))
    size = buffer // links // ALIGNMENT * ALIGNMENT
    if size < SMALLEST:
        raise InputError(f"A swap buffer of {buffer} bytes is too small for the {links} links of a rank.")
    return size


def schedule(copies: Sequence[Copy], itemsizes: Sequence[int], capacity: int) -> list[Chunk]:
    """The chunks, of at most ``capacity`` bytes, that carry a link's copies; ``itemsizes``: bytes of their elements."""
    chunks: list[Chunk] = []
    pieces: list[Piece] = []
    size = 0
    for piece in _pieces(copies, itemsizes, capacity):
        begin = _aligned(size)
        if pieces and (piece.size >= ALONE or begin + piece.size > capacity):
            chunks.append(Chunk(tuple(pieces), size))
            pieces, begin = [], 0
        pieces.append(piece._replace(offset=begin))
        size = begin + piece.size
        if piece.size >= ALONE:
            chunks.append(Chunk(tuple(pieces), size))
            pieces, size = [], 0
    return [*chunks, Chunk(tuple(pieces), size)] if pieces else chunks


def _pieces(copies: Sequence[Copy], itemsizes: Sequence[int], capacity: int) -> Iterator[Piece]:
    """Every piece, as if it began a chunk."""
    for number, (c, itemsize) in enumerate(zip(copies, itemsizes, strict=True)):
        shape, (read, write) = merged(c.shape, c.source_strides, c.destination_strides)
        passed, total = 0, c.elements * itemsize
        for part in bands(shape, itemsize, capacity):
            size = itemsize * _elements(shape, part)
            passed += size
            yield Piece(number, shape, read, write, part, 0, size, passed == total)


def _elements(shape: Ints, part: Index) -> int:
    extents = [len(range(*p.indices(n))) for n, p in zip(shape, part, strict=False) if isinstance(p, slice)]
    return prod((*extents, *shape[len(part) :]))


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


class Link:
    """One pair of ranks: the peer, the copies between the two, their chunks and the slots for them."""

    def __init__(
        self, plan: Plan, ends: Endpoints, indices: list[int], dtypes: Mapping[str, torch.dtype] | torch.dtype
    ) -> None:
        self.indices, self.copies = indices, [plan.copies[i] for i in indices]
        source, destination = self.copies[0].source_rank, self.copies[0].destination_rank
        self.dtypes = [dtypes[c.destination] if isinstance(dtypes, Mapping) else dtypes for c in self.copies]
        capacity = chunk_bytes(plan, source, destination, ends.buffer // SLOTS)
        self.chunks = schedule(self.copies, [d.itemsize for d in self.dtypes], capacity)
        self.hashes, self.state = np.zeros(len(indices), dtype=np.uint64), xxhash.xxh3_64()
        self.works: dict[int, Any] = {}  # by number of the chunk: messages under way
        self.schedule = xxhash.xxh3_128(
            repr((capacity, [str(d) for d in self.dtypes], [chunk.size for chunk in self.chunks])).encode()
        ).digest()

    def connect(self, places: list[list[torch.Tensor]], device: torch.device) -> None:
        """Allocate the slots. ``places``: where the pieces of every chunk lie at this end."""
        self.places = places
        chunks = zip(self.chunks, places, strict=True)
        self.runs = [_run(held, self.dtypes[chunk.pieces[0].copy], device) for chunk, held in chunks]
        packed = [number for number, run in enumerate(self.runs) if run is None]
        self._slots = {number: i % SLOTS for i, number in enumerate(packed)}
        before = dict(zip(packed[SLOTS:], packed, strict=False))  # in the same slot
        # The chunk that must be done with before a chunk may be under way; below 0: none.
        self.after = [max(number - AHEAD, before.get(number, -1)) for number in range(len(self.chunks))]
        # From pinned memory a GPU reads by itself, and into it it writes.
        pinned = device.type == "cpu" and any(held.is_cuda for pieces in places for held in pieces)
        largest = max((self.chunks[number].size for number in packed), default=0)
        self.slots = torch.zeros(SLOTS, largest, dtype=torch.uint8, device=device, pin_memory=pinned)

    def message(self, number: int) -> torch.Tensor:
        """What a chunk is sent from or received into."""
        run = self.runs[number]
        return self.slots[self._slots[number], : self.chunks[number].size] if run is None else run

    def parts(self, number: int) -> Iterator[tuple[Piece, torch.Tensor, torch.Tensor | None]]:
        """The pieces of a chunk: where each lies at this end, and in the slot if it travels through one."""
        slot = None if self.runs[number] is not None else self.message(number)
        for piece, held in zip(self.chunks[number].pieces, self.places[number], strict=True):
            if slot is None:
                yield piece, held, None
            else:
                part = slot[piece.offset : piece.offset + piece.size]
                yield piece, held, part.view(self.dtypes[piece.copy]).view(held.shape)

    def end_of(self, piece: Piece) -> None:
        """A copy is hashed as far as a piece."""
        if piece.last:
            self.hashes[piece.copy] = self.state.intdigest()
            self.state.reset()


def _run(pieces: list[torch.Tensor], dtype: torch.dtype, device: torch.device) -> torch.Tensor | None:
    """The bytes of a chunk that can travel from or to where it lies."""
    held = pieces[0]
    if len(pieces) > 1 or held.dtype != dtype or held.device != device or not held.is_contiguous():
        return None
    return held.view(-1).view(torch.uint8)
