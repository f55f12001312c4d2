"""Proof that a plan is right, by boxes and intervals: no element is sampled, none is enumerated.

The proof knows nothing of how plans are made. It shows that (1) in both layouts the segments and the padding of
every local tensor tile it exactly, (2) every copy, box by box, lies inside one source and one destination segment of
its tensor, at the places and strides that these give the box, (3) the boxes written into a destination segment are
disjoint and add up to it, and (4) every tensor is copied or declared unused by the destination. So every destination
element is written exactly once, with the source's element of the same canonical index.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import combinations
from math import prod

from megatron_rl.resharding.layout import Layout, Segment, Shard
from megatron_rl.resharding.plan import Copy, Ints, Plan, check_same_tensors, position

Strided = tuple[int, Ints, Ints]  # offset, shape, strides: a box in flat coordinates
Rectangle = tuple[int, int, int, int]  # top, bottom, left, right of a matrix
FEW = 64  # boxes that are compared pair by pair in less time than numpy takes to be imported


class ProofError(RuntimeError):
    """A plan or a layout that would not move every element to its place exactly once; names the tensor."""


def intervals(first: int, dims: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The [low, high) runs of {first + sum k_i * step_i : 0 <= k_i < extent_i}."""
    runs = [(first, first + 1)]
    for step, extent in sorted(dims):
        if len(runs) == 1 and step == runs[0][1] - runs[0][0]:
            runs = [(runs[0][0], runs[0][1] + step * (extent - 1))]
        else:
            runs = [(low + k * step, high + k * step) for k in range(extent) for low, high in runs]
    return runs


def _rectangles(width: int, box: Strided) -> list[Rectangle] | None:
    """The box in rows of ``width`` elements; None when it is ragged."""
    offset, shape, strides = box
    top, left = divmod(offset, width)
    dims = [(step, extent) for step, extent in zip(strides, shape, strict=True) if extent > 1]
    if any(step >= width and step % width for step, _ in dims):
        return None
    rows = intervals(top, [(step // width, extent) for step, extent in dims if step >= width])
    columns = intervals(left, [(step, extent) for step, extent in dims if step < width])
    if max(high for _, high in columns) > width:
        return None
    return [(*row, *column) for row in rows for column in columns]


@lru_cache(maxsize=1 << 14)
def tiles(shape: Ints, boxes: tuple[Strided, ...]) -> bool:
    """True when every element of a contiguous tensor of this shape lies in exactly one of the strided boxes."""
    width = shape[-1] if shape else 1
    rectangles: list[Rectangle] = []
    for box in boxes:
        found = _rectangles(width, box)
        if found is None:
            return False
        rectangles += found
    height = prod(shape) // width
    # Inside, and in all as large as the whole: then they cover it once unless two of them meet.
    if min((r[0] for r in rectangles), default=0) < 0 or max((r[1] for r in rectangles), default=0) > height:
        return False
    if sum((bottom - top) * (right - left) for top, bottom, left, right in rectangles) != height * width:
        return False
    return disjoint([((top, left), (bottom, right)) for top, bottom, left, right in rectangles])


def disjoint(boxes: list[tuple[Ints, Ints]]) -> bool:
    """True when no two boxes, (low, high) corners of any number of dimensions, have an element in common."""
    if len(boxes) <= FEW:
        return not any(
            all(a < d and c < b for a, b, c, d in zip(*one, *other, strict=True))
            for one, other in combinations(boxes, 2)
        )
    import numpy as np

    corners = np.array(boxes, dtype=np.int64)
    low, high = corners[:, 0] - corners.min(), corners[:, 1] - corners.min()
    span = int(high.max()) + 1
    group = np.zeros(len(boxes), dtype=np.int64)  # boxes that no cut across a dimension has parted
    before = -1
    while before < (before := int(group.max())):
        for dimension in range(low.shape[1]):
            begin, end = low[:, dimension] + group * span, high[:, dimension] + group * span
            order = np.argsort(begin, kind="stable")
            apart = begin[order][1:] >= np.maximum.accumulate(end[order])[:-1]
            group[order] = np.concatenate([[0], np.cumsum(apart)])
    order = np.argsort(group, kind="stable")
    low, high, group = low[order], high[order], group[order]
    last = np.searchsorted(group, group, side="right")  # behind the last box of this one's group
    return not any(
        ((low[i] < high[i + 1 : end]) & (low[i + 1 : end] < high[i])).all(axis=1).any()
        for i, end in enumerate(last)
        if end > i + 1
    )


def _check_shard(layout: Layout, rank: int, shard: Shard) -> None:
    boxes: dict[str, list[Strided]] = {name: [] for name in shard.locals}
    for s in shard.segments:
        spec = layout.tensors.get(s.tensor)
        if spec is None or s.local not in boxes:
            raise ProofError(f"Rank {rank} places tensor {s.tensor} in {s.local}, and one of them is unknown.")
        inside = all(a >= 0 and n > 0 and a + n <= m for a, n, m in zip(s.start, s.shape, spec.index, strict=True))
        if not inside:
            raise ProofError(f"Rank {rank} holds in {s.local} a box of {s.tensor} that reaches beyond the tensor.")
        boxes[s.local].append((s.offset, s.shape, s.strides))
    for pad in shard.padding:
        width = shard.locals[pad.local][-1]
        rows = (pad.size // width, width) if pad.size % width == 0 else (1, pad.size)
        boxes[pad.local].append((pad.offset, rows, (width, 1)))
    for name, shape in shard.locals.items():
        if not tiles(shape, tuple(boxes[name])):
            raise ProofError(f"The segments and padding of {name} {list(shape)} on rank {rank} do not tile it exactly.")


def check_parameters(shard: Shard, shapes: Mapping[str, Ints], where: str) -> None:
    """Raises ProofError naming a parameter of ``where`` that is missing, unknown, or not of the shape in ``shard``."""
    for name in sorted(shard.locals.keys() | shapes.keys()):
        expected, found = shard.locals.get(name), shapes.get(name)
        if expected != found:
            raise ProofError(
                f"Parameter {name} of {where} {_described(found)}; in the family's layout it {_described(expected)}."
            )


def _described(shape: Ints | None) -> str:
    return "does not exist" if shape is None else f"has shape {list(shape)}"


def check_layout(layout: Layout) -> None:
    """Raises ProofError naming a local tensor that segments and padding do not cover exactly once."""
    checked: set[int] = set()
    for rank, shard in enumerate(layout.ranks):
        if id(shard) not in checked:
            _check_shard(layout, rank, shard)
            checked.add(id(shard))


def _by_tensor(shard: Shard) -> dict[tuple[str, str], list[Segment]]:
    found = defaultdict(list)
    for segment in shard.segments:
        found[segment.local, segment.tensor].append(segment)
    return found


@lru_cache(maxsize=1 << 16)
def _inside(start: Ints, shape: Ints, box: Ints, extent: Ints) -> bool:
    """True when the second box lies inside the first."""
    return all(a <= b and b + n <= a + m for a, m, b, n in zip(start, shape, box, extent, strict=True))


def _containing(segments: list[Segment], copy: Copy, offset: int, strides: Ints) -> int | None:
    """Which of the segments holds the copy's box at this place; None: none does."""
    for i, s in enumerate(segments):
        if (
            strides == s.strides
            and _inside(s.start, s.shape, copy.start, copy.shape)
            and offset == position(s, copy.start)
        ):
            return i
    return None


@lru_cache(maxsize=1 << 14)
def _fills(start: Ints, shape: Ints, boxes: tuple[tuple[Ints, Ints], ...]) -> bool:
    """True when boxes inside a segment's box are disjoint and add up to it."""
    if sum(prod(extent) for _, extent in boxes) != prod(shape):
        return False
    return disjoint([(low, tuple(a + n for a, n in zip(low, extent, strict=True))) for low, extent in boxes])


def _boxes(plan: Plan) -> Iterator[Copy]:
    """The single boxes of all copies. A copy of several is right when they fill it along its axis."""
    for c in plan.copies:
        if c.parts:
            extents = [part.extent for part in c.parts]
            if sum(extents) != c.shape[c.axis] or min(extents) < 1 or c.tensor != c.parts[0].tensor:
                raise ProofError(f"The copy of {', '.join(c.tensors)} to {c.destination} is not the sum of its parts.")
        yield from c.boxes()


def _described_copy(c: Copy) -> str:
    return (
        f"the copy of {c.tensor} from {c.source} of rank {c.source_rank} to {c.destination} of rank "
        f"{c.destination_rank}"
    )


def prove(plan: Plan, source: Layout, destination: Layout) -> None:
    """Raises ProofError (InputError for a tensor that one side lacks) naming the tensor unless the plan is right."""
    check_same_tensors(source, destination)
    check_layout(source)
    check_layout(destination)
    if (plan.sources, plan.destinations) != (len(source.ranks), len(destination.ranks)):
        raise ProofError(f"The plan is for {plan.sources} -> {plan.destinations} ranks, not for these layouts.")
    held = [_by_tensor(shard) for shard in source.ranks]
    by_shard = {id(shard): _by_tensor(shard) for shard in destination.ranks}
    wanted = [by_shard[id(shard)] for shard in destination.ranks]
    written: dict[tuple[int, str, str, int], list[tuple[Ints, Ints]]] = defaultdict(list)
    copied: set[str] = set()
    for c in _boxes(plan):
        if min(c.shape) < 1 or not 0 <= c.source_rank < len(held) or not 0 <= c.destination_rank < len(wanted):
            raise ProofError(f"There is nothing at an end of {_described_copy(c)}.")
        owners = held[c.source_rank].get((c.source, c.tensor), [])
        if _containing(owners, c, c.source_offset, c.source_strides) is None:
            raise ProofError(f"The source does not hold what {_described_copy(c)} reads.")
        targets = wanted[c.destination_rank].get((c.destination, c.tensor), [])
        index = _containing(targets, c, c.destination_offset, c.destination_strides)
        if index is None:
            raise ProofError(f"The destination has no place where {_described_copy(c)} writes.")
        written[c.destination_rank, c.destination, c.tensor, index].append((c.start, c.shape))
        copied.add(c.tensor)
    for rank, segments in enumerate(wanted):
        for (local, tensor), targets in segments.items():
            for index, s in enumerate(targets):
                boxes = written.get((rank, local, tensor, index), [])
                whole = len(boxes) == 1 and boxes[0] == (s.start, s.shape)
                if not whole and not _fills(s.start, s.shape, tuple(boxes)):
                    raise ProofError(f"Tensor {tensor} is not written exactly once into {local} of rank {rank}.")
    if plan.unused != destination.unused or copied & plan.unused:
        raise ProofError("The plan leaves other tensors unused than the destination declares.")
    forgotten = (source.tensors.keys() | destination.tensors.keys()) - copied - plan.unused
    if forgotten:
        raise ProofError(f"Tensor {min(forgotten)} of the source is not used.")
