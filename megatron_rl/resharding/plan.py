"""A resharding plan: which box of which source tensor goes where. Plain data from a pure function of two layouts.

Every rank that knows both layouts computes the same plan, without communication. Source and destination
segments of a tensor are boxes of one index space, so their intersections are boxes too, and each is one
strided copy: nothing is gathered to be thrown away.
"""

from array import array
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod
from typing import NamedTuple

import xxhash

from megatron_rl.errors import InputError
from megatron_rl.resharding.layout import Layout, Segment, TensorSpec

Ints = tuple[int, ...]


class Copy(NamedTuple):
    """One box of one canonical tensor on its way. Offsets and strides count elements of the flat local tensors."""

    tensor: str  # canonical name
    start: Ints  # the box's first index in the tensor's index space
    shape: Ints  # its extent
    source_rank: int
    source: str  # local tensor
    source_offset: int
    source_strides: Ints
    destination_rank: int
    destination: str
    destination_offset: int
    destination_strides: Ints

    @property
    def elements(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Plan:
    """Copies ordered by destination rank and, inside it, as the destination's layout lists its segments."""

    tensors: dict[str, TensorSpec]
    sources: int  # ranks
    destinations: int
    copies: tuple[Copy, ...]

    @cached_property
    def hash(self) -> str:
        """xxh3-128 of the copies, 32 hexadecimal digits: equal on every rank, process and machine."""
        names: dict[str, int] = {}
        numbers = array("q", [self.sources, self.destinations])
        for c in self.copies:
            row = [names.setdefault(name, len(names)) for name in (c.tensor, c.source, c.destination)]
            row += [c.source_rank, c.source_offset, c.destination_rank, c.destination_offset, len(c.shape)]
            numbers.extend([*row, *c.start, *c.shape, *c.source_strides, *c.destination_strides])
        return xxhash.xxh3_128_hexdigest("\0".join(names).encode() + b"\0\0" + numbers.tobytes())

    @cached_property
    def _by_rank(self) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
        to, origin = defaultdict(list), defaultdict(list)
        for i, c in enumerate(self.copies):
            to[c.destination_rank].append(i)
            origin[c.source_rank].append(i)
        return to, origin

    def copies_to(self, rank: int) -> list[int]:
        """Indices of the copies that this destination rank receives."""
        return self._by_rank[0].get(rank, [])

    def copies_from(self, rank: int) -> list[int]:
        """Indices of the copies that this source rank owns."""
        return self._by_rank[1].get(rank, [])

    def bytes(self, itemsize: int = 2) -> dict[tuple[int, int], int]:
        """Bytes over each link (source rank, destination rank), at ``itemsize`` bytes per element."""
        links: Counter[tuple[int, int]] = Counter()
        for c in self.copies:
            links[c.source_rank, c.destination_rank] += c.elements * itemsize
        return dict(links)

    def summary(self, itemsize: int = 2) -> str:
        """One line for people."""
        size = sum(self.bytes(itemsize).values())
        return (
            f"{len(self.tensors)} tensors, {len(self.copies)} copies, {size / 1e6:.1f} MB, "
            f"{self.sources} -> {self.destinations} ranks, plan {self.hash}"
        )


class _Holder(NamedTuple):
    rank: int
    segment: Segment


@lru_cache(maxsize=1 << 16)
def _intersect(start: Ints, shape: Ints, other_start: Ints, other_shape: Ints) -> tuple[Ints, Ints] | None:
    """Start and shape of the intersection of two boxes; None when it is empty."""
    low = tuple(map(max, start, other_start))
    extent = tuple(
        min(a + n, b + m) - c for a, n, b, m, c in zip(start, shape, other_start, other_shape, low, strict=True)
    )
    return (low, extent) if all(n > 0 for n in extent) else None


def position(segment: Segment, index: Ints) -> int:
    """Flat position in the segment's local tensor of an index of its canonical tensor."""
    return segment.offset + sum(
        (i - first) * step for i, first, step in zip(index, segment.start, segment.strides, strict=True)
    )


def _index(source: Layout) -> dict[str, dict[tuple[Ints, Ints], list[_Holder]]]:
    """Canonical name -> box -> everyone who holds exactly this box."""
    boxes: dict[str, dict[tuple[Ints, Ints], list[_Holder]]] = {name: {} for name in source.tensors}
    for rank, shard in enumerate(source.ranks):
        for segment in shard.segments:
            boxes[segment.tensor].setdefault((segment.start, segment.shape), []).append(_Holder(rank, segment))
    return boxes


def check_same_tensors(source: Layout, destination: Layout) -> None:
    """Raises InputError naming a tensor that only one side knows, or that has two shapes."""
    for name in (*source.tensors, *destination.tensors):
        here, there = source.tensors.get(name), destination.tensors.get(name)
        if here is None:
            raise InputError(f"The destination asks for tensor {name}, which the source does not have.")
        if there is None:
            raise InputError(f"The source has tensor {name}, which the destination does not know.")
        if here != there:
            raise InputError(
                f"Tensor {name} has shape {here.shape} in the source and {there.shape} in the destination."
            )


def make_plan(
    source: Layout,
    destination: Layout,
    *,
    source_hosts: Sequence[Hashable] = (),
    destination_hosts: Sequence[Hashable] = (),
) -> Plan:
    """The copies that fill every destination segment.

    Of several ranks that hold a box, one on the destination's host (``source_hosts``, ``destination_hosts``: one
    entry per rank, all alike when left out) is read first, then the one that has the least to send so far.

    Raises InputError naming a tensor that one side lacks or that the source holds only in part.
    """
    check_same_tensors(source, destination)
    boxes = _index(source)
    sent = [0] * len(source.ranks)
    copies: list[Copy] = []
    for rank, shard in enumerate(destination.ranks):
        host = destination_hosts[rank] if destination_hosts else None
        for segment in shard.segments:
            missing = prod(segment.shape)
            for (start, shape), holders in boxes[segment.tensor].items():
                found = _intersect(segment.start, segment.shape, start, shape)
                if found is None:
                    continue
                box, extent = found
                size = prod(extent)
                holder = holders[0]
                if len(holders) > 1:
                    near = [h for h in holders if source_hosts and source_hosts[h.rank] == host] or holders
                    holder = min(near, key=lambda h: (sent[h.rank], h.rank))
                sent[holder.rank] += size
                missing -= size
                copies.append(
                    Copy(
                        segment.tensor,
                        box,
                        extent,
                        holder.rank,
                        holder.segment.local,
                        position(holder.segment, box),
                        holder.segment.strides,
                        rank,
                        segment.local,
                        position(segment, box),
                        segment.strides,
                    )
                )
            if missing:
                raise InputError(
                    f"The source's segments of tensor {segment.tensor} do not add up to what {segment.local} of "
                    f"destination rank {rank} needs: {missing} elements of {prod(segment.shape)} are "
                    f"{'missing' if missing > 0 else 'held twice'}."
                )
    return Plan(destination.tensors, len(source.ranks), len(destination.ranks), tuple(copies))
