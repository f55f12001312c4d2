"""How the copies between two ranks are cut and packed into chunks of bounded size.

A pure function of the plan, so that both ends know every chunk without a word: its pieces, where they lie in it, and
its length. Pieces stand in the order of the copies, each copy's in row-major order.
"""

from collections.abc import Iterator, Sequence
from math import prod
from typing import NamedTuple

from megatron_rl.errors import InputError
from megatron_rl.resharding.execute import BAND, Index, bands
from megatron_rl.resharding.layout import merged
from megatron_rl.resharding.plan import Copy, Ints, Plan

ALIGNMENT = 16  # bytes: every piece begins at a multiple
HASH = 8  # bytes of the hash behind a copy's last piece
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
    last: bool  # the copy ends here, and its hash follows

    @property
    def hash_offset(self) -> int:
        """Byte of the chunk where the hash of the copy begins that ends here."""
        return _aligned(self.offset + self.size)


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
        moved = piece._replace(offset=begin)
        end = moved.hash_offset + HASH if piece.last else begin + piece.size
        if end > capacity:
            chunks.append(Chunk(tuple(pieces), _aligned(size)))
            pieces, moved = [], piece
            end = moved.hash_offset + HASH if piece.last else piece.size
        pieces.append(moved)
        size = end
    return [*chunks, Chunk(tuple(pieces), _aligned(size))]


def _pieces(copies: Sequence[Copy], itemsizes: Sequence[int], capacity: int) -> Iterator[Piece]:
    """Every piece, as if it began a chunk."""
    limit = min(BAND, capacity - ALIGNMENT - HASH)  # a piece leaves room for a hash
    for number, (c, itemsize) in enumerate(zip(copies, itemsizes, strict=True)):
        shape, (read, write) = merged(c.shape, c.source_strides, c.destination_strides)
        passed, total = 0, c.elements * itemsize
        for part in bands(shape, itemsize, limit):
            size = itemsize * _elements(shape, part)
            passed += size
            yield Piece(number, shape, read, write, part, 0, size, passed == total)


def _elements(shape: Ints, part: Index) -> int:
    extents = [len(range(*p.indices(n))) for n, p in zip(shape, part, strict=False) if isinstance(p, slice)]
    return prod((*extents, *shape[len(part) :]))


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
