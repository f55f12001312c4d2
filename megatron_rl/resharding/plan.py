"""A resharding plan: which box of which source tensor goes where. Plain data from a pure function of two layouts.

Every rank that knows both layouts computes the same plan, without communication. Source and destination
segments of a tensor are boxes of one index space, so their intersections are boxes too, and each is one
strided copy: nothing is gathered to be thrown away.
"""

from array import array
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod
from typing import NamedTuple

import xxhash

from megatron_rl.errors import InputError
from megatron_rl.resharding.layout import Layout, Segment, TensorSpec

Ints = tuple[int, ...]
ITEMSIZES = {"float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1}  # bytes, by torch's name of a dtype


class Part(NamedTuple):
    """What a copy of several boxes carries of one of them."""

    tensor: str  # canonical name
    start: Ints  # the box's first index in the tensor's index space
    extent: int  # along the copy's axis


class Copy(NamedTuple):
    """Boxes of canonical tensors on their way together. Offsets and strides count elements of the flat local tensors.

    Mostly it is one box. Boxes that adjoin on both sides in one dimension ([gate; up], a group's [q; k; v]) travel
    as one: ``tensor`` and ``start`` are then the first one's, and ``parts`` lists them all along ``axis``.
    """

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
    parts: tuple[Part, ...] = ()
    axis: int = 0

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def tensors(self) -> tuple[str, ...]:
        """Canonical names of all that it carries."""
        return tuple(part.tensor for part in self.parts) or (self.tensor,)

    def boxes(self) -> Iterator["Copy"]:
        """The single boxes that it consists of, each as a copy of its own."""
        if not self.parts:
            yield self
        shape, axis, passed = self.shape, self.axis, 0
        for part in self.parts:
            yield self._replace(
                tensor=part.tensor,
                start=part.start,
                shape=(*shape[:axis], part.extent, *shape[axis + 1 :]),
                source_offset=self.source_offset + passed * self.source_strides[axis],
                destination_offset=self.destination_offset + passed * self.destination_strides[axis],
                parts=(),
            )
            passed += part.extent


def _joined(a: Copy, b: Copy) -> Copy | None:
    """One copy for two from the same source to the same destination tensor; None where they do not adjoin."""
    if a.source_strides != b.source_strides or a.destination_strides != b.destination_strides:
        return None
    read, write = b.source_offset - a.source_offset, b.destination_offset - a.destination_offset
    for axis, (extent, step, other) in enumerate(zip(a.shape, a.source_strides, a.destination_strides, strict=True)):
        if read != extent * step or write != extent * other or (a.parts and a.axis != axis):
            continue
        if a.shape[:axis] + a.shape[axis + 1 :] == b.shape[:axis] + b.shape[axis + 1 :]:
            parts = a.parts or (Part(a.tensor, a.start, extent),)
            return a._replace(
                shape=(*a.shape[:axis], extent + b.shape[axis], *a.shape[axis + 1 :]),
                parts=(*parts, Part(b.tensor, b.start, b.shape[axis])),
                axis=axis,
            )
    return None


@dataclass(frozen=True)
class Plan:
    """Copies ordered by destination rank and, inside it, as the destination's layout lists its segments."""

    tensors: dict[str, TensorSpec]  # what is moved
    sources: int  # ranks
    destinations: int
    copies: tuple[Copy, ...]
    unused: frozenset[str] = frozenset()  # the source's tensors that the destination declares it does without

    @cached_property
    def hash(self) -> str:
        """xxh3-128 of the copies, 32 hexadecimal digits: equal on every rank, process and machine."""
        names: dict[str, int] = {}
        state = xxhash.xxh3_128()
        numbers = array("q", [self.sources, self.destinations])
        for c in self.copies:
            row = [names.setdefault(name, len(names)) for name in (c.tensor, c.source, c.destination)]
            row += [c.source_rank, c.source_offset, c.destination_rank, c.destination_offset, len(c.shape), c.axis]
            numbers.extend([*row, len(c.parts), *c.start, *c.shape, *c.source_strides, *c.destination_strides])
            for part in c.parts:
                numbers.extend([names.setdefault(part.tensor, len(names)), part.extent, *part.start])
            if len(numbers) > 1 << 16:
                state.update(numbers.tobytes())
                del numbers[:]
        state.update(numbers.tobytes())
        dtypes = (self.tensors[name].dtype if name in self.tensors else "" for name in names)
        state.update("\0".join(f"{name}\1{dtype}" for name, dtype in zip(names, dtypes, strict=True)).encode())
        return state.hexdigest()

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
        """Bytes over each link (source rank, destination rank).

        ``itemsize``: bytes per element of the model's dtype; tensors with a dtype of their own have theirs.
        """
        links: Counter[tuple[int, int]] = Counter()
        for c in self.copies:
            links[c.source_rank, c.destination_rank] += c.elements * ITEMSIZES.get(
                self.tensors[c.tensor].dtype, itemsize
            )
        return dict(links)

    def summary(self, itemsize: int = 2) -> str:
        """One line for people."""
        size = sum(self.bytes(itemsize).values())
        return (
            f"{len(self.tensors)} tensors, {len(self.copies)} copies, {size / 1e6:.1f} MB, "
            f"{self.sources} -> {self.destinations} ranks, plan {self.hash}"
        )


Place = tuple[Hashable, ...]  # where a rank runs, widest first: (host,) or (host, device)


def common(a: Place, b: Place) -> int:
    """How close two places are: the number of leading entries that they share."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


class _Holder(NamedTuple):
    rank: int
    segment: Segment


@lru_cache(maxsize=1 << 16)
def intersect(start: Ints, shape: Ints, other_start: Ints, other_shape: Ints) -> tuple[Ints, Ints] | None:
    """Start and shape of the intersection of two boxes; None when it is empty."""
    low = tuple(map(max, start, other_start))
    extent = tuple(
        min(a + n, b + m) - c for a, n, b, m, c in zip(start, shape, other_start, other_shape, low, strict=True)
    )
    return (low, extent) if all(n > 0 for n in extent) else None


@lru_cache(maxsize=1 << 16)
def _steps(start: Ints, strides: Ints, index: Ints) -> int:
    return sum((i - first) * step for i, first, step in zip(index, start, strides, strict=True))


def position(segment: Segment, index: Ints) -> int:
    """Flat position in the segment's local tensor of an index of its canonical tensor."""
    return segment.offset + _steps(segment.start, segment.strides, index)


def _index(source: Layout) -> dict[str, dict[tuple[Ints, Ints], list[_Holder]]]:
    """Canonical name -> box -> everyone who holds exactly this box."""
    boxes: dict[str, dict[tuple[Ints, Ints], list[_Holder]]] = {name: {} for name in source.tensors}
    for rank, shard in enumerate(source.ranks):
        for segment in shard.segments:
            boxes[segment.tensor].setdefault((segment.start, segment.shape), []).append(_Holder(rank, segment))
    return boxes


def check_same_tensors(
    source: Layout, destination: Layout, sides: tuple[str, str] = ("the source", "the destination")
) -> None:
    """Raises InputError naming a tensor that only one side knows, or that the two have otherwise, and in what.

    What the destination declares unused need not be in the source. ``sides``: what messages call them.
    """
    mine, theirs = sides
    for name in (*source.tensors, *destination.tensors):
        here, there = source.tensors.get(name), destination.tensors.get(name)
        if (here is None or name in source.unused) and name not in destination.unused:
            raise InputError(f"Tensor {name}: {theirs} asks for it, and {mine} does not have it.")
        if here is None:
            continue
        if there is None:
            raise InputError(f"Tensor {name}: {mine} has it, and {theirs} does not know it.")
        for what, a, b in (
            ("shape", here.shape, there.shape),
            ("dtype", here.dtype or "the model's", there.dtype or "the model's"),
            ("[num_key_value_heads, rows, columns]", here.index, there.index),
        ):
            if a != b:
                raise InputError(f"Tensor {name} has {what} {a} in {mine} and {b} in {theirs}.")


class _Sources:
    """Who holds which box, and who of several reads it out: the nearest, then the one with the least to send."""

    def __init__(self, source: Layout, places: Sequence[Place]) -> None:
        self.boxes = _index(source)
        self.places = places
        self.sent = [0] * len(source.ranks)
        self.closeness: list[int] = []

    def approach(self, place: Place) -> None:
        """Set the place of the destination."""
        self.closeness = [common(mine, place) for mine in self.places]

    def nearest(self, holders: list[_Holder]) -> list[_Holder]:
        """Those of the holders that are closest to the destination."""
        if len(holders) == 1 or not self.closeness:
            return holders
        best = max(self.closeness[h.rank] for h in holders)
        return [h for h in holders if self.closeness[h.rank] == best]


def make_plan(
    source: Layout,
    destination: Layout,
    *,
    source_places: Sequence[Place] = (),
    destination_places: Sequence[Place] = (),
) -> Plan:
    """The copies that fill every destination segment.

    Of several ranks that hold a box, the nearest is read (``source_places``, ``destination_places``: one entry per
    rank, all alike when left out); of equally near ones the one whose last copy this one continues, then the one
    that has the least to send so far.

    Raises InputError naming a tensor that one side lacks or that the source holds only in part.
    """
    check_same_tensors(source, destination)
    sources = _Sources(source, source_places)
    copies: list[Copy] = []
    for rank, shard in enumerate(destination.ranks):
        if destination_places:
            sources.approach(destination_places[rank])
        local, latest = "", dict[tuple[int, str], int]()  # copies into this local tensor, by where they come from
        for segment in shard.segments:
            if segment.local != local:
                local, latest = segment.local, {}
            missing = prod(segment.shape)
            for (start, shape), holders in sources.boxes[segment.tensor].items():
                found = intersect(segment.start, segment.shape, start, shape)
                if found is None:
                    continue
                size = prod(found[1])
                missing -= size
                near = sources.nearest(holders)
                for holder in near:
                    before = latest.get((holder.rank, holder.segment.local))
                    joined = before is not None and _joined(copies[before], _copy(segment, rank, holder, *found))
                    if before is not None and joined:
                        copies[before] = joined
                        break
                else:
                    holder = near[0] if len(near) == 1 else min(near, key=lambda h: (sources.sent[h.rank], h.rank))
                    latest[holder.rank, holder.segment.local] = len(copies)
                    copies.append(_copy(segment, rank, holder, *found))
                sources.sent[holder.rank] += size
            if missing:
                raise InputError(
                    f"The source's segments of tensor {segment.tensor} do not add up to what {segment.local} of "
                    f"destination rank {rank} needs: {missing} elements of {prod(segment.shape)} are "
                    f"{'missing' if missing > 0 else 'held twice'}."
                )
    moved = {name: spec for name, spec in destination.tensors.items() if name not in destination.unused}
    return Plan(moved, len(source.ranks), len(destination.ranks), tuple(copies), destination.unused)


def _copy(segment: Segment, rank: int, holder: _Holder, box: Ints, extent: Ints) -> Copy:
    """The copy of one box into a segment of destination rank ``rank``."""
    return Copy(
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
