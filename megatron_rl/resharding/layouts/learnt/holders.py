"""What a traced memory holds: which elements of which canonical tensors, as boxes of the memory's own index space."""

from collections.abc import Iterator
from math import prod
from typing import NamedTuple

import torch

from megatron_rl.resharding.layout import row_major
from megatron_rl.resharding.layouts.learnt.views import pieces
from megatron_rl.resharding.plan import Ints, intersect
from megatron_rl.resharding.proof import tiles


class View(NamedTuple):
    """A strided view of a holder, flat (all numbers count elements)."""

    offset: int
    shape: Ints
    steps: Ints


class Box(NamedTuple):
    """Where a box of a holder's index space comes from."""

    start: Ints
    shape: Ints
    tensor: str  # canonical name; "" for a constant
    offset: int  # flat position in the canonical tensor
    steps: Ints  # and step there for each dimension of the holder's index space
    through: frozenset[torch.dtype]  # every dtype that the elements had on their way here


class Holder:
    """A stretch of memory: a canonical tensor, what a loader made of some, or something that the model keeps."""

    def __init__(self, name: str, index: Ints, dtype: torch.dtype, *, parameter: bool = False) -> None:
        self.name, self.index, self.dtype, self.parameter = name, index, dtype, parameter
        self.written: list[Box] = []

    def boxes(self) -> list[Box]:
        """What it holds now: disjoint, for a later write replaces what it covers of earlier ones."""
        if len(self.written) > 1 and not self._tiled():
            left: list[Box] = []
            for box in self.written:
                left = [rest for old in left for rest in _without(old, box)]
                left.append(box)
            self.written = left
        return self.written

    def _tiled(self) -> bool:
        strides = row_major(self.index)
        places = ((sum(i * s for i, s in zip(b.start, strides, strict=True)), b.shape, strides) for b in self.written)
        return tiles(self.index, tuple(places))

    @property
    def missing(self) -> int:
        """Elements that nothing was written into."""
        return prod(self.index) - sum(prod(box.shape) for box in self.boxes())


def _part(box: Box, start: Ints, shape: Ints) -> Box:
    moved = sum((i - j) * step for i, j, step in zip(start, box.start, box.steps, strict=True))
    return box._replace(start=start, shape=shape, offset=box.offset + moved)


def _without(box: Box, hole: Box) -> Iterator[Box]:
    """The parts of a box that lie outside another one."""
    found = intersect(box.start, box.shape, hole.start, hole.shape)
    if found is None:
        yield box
        return
    start, shape = list(box.start), list(box.shape)
    for axis, (low, extent) in enumerate(zip(*found, strict=True)):
        end = start[axis] + shape[axis]
        for first, last in ((start[axis], low), (low + extent, end)):
            if first < last:
                at, size = list(start), list(shape)
                at[axis], size[axis] = first, last - first
                yield _part(box, tuple(at), tuple(size))
        start[axis], shape[axis] = low, extent


def carry(source: Holder, view: View, target: Holder, place: View) -> bool:
    """Note the copy of a view of one holder into a view of another (of one shape).

    False, and nothing noted, when the source does not hold all of it yet.
    """
    found, count = [], 0
    held = source.boxes()
    for piece in pieces(source.index, view.offset, view.shape, view.steps, place.offset, place.steps):
        for box in held:
            common = intersect(piece.start, piece.shape, box.start, box.shape)
            if common is None:
                continue
            count += prod(common[1])
            to = sum((i - j) * s for i, j, s in zip(common[0], piece.start, piece.strides, strict=True))
            found.append((_part(box, *common), View(piece.offset + to, common[1], piece.strides)))
    if count != prod(view.shape):
        return False
    for box, part in found:
        through = box.through | {target.dtype}
        for p in pieces(target.index, part.offset, part.shape, part.steps, box.offset, box.steps):
            _note(target, Box(p.start, p.shape, box.tensor, p.offset, p.strides, through))
    return True


def fill(target: Holder, place: View) -> None:
    """Note that a view of a holder is filled with a constant."""
    none = (0,) * len(place.shape)
    for p in pieces(target.index, place.offset, place.shape, place.steps, 0, none):
        _note(target, Box(p.start, p.shape, "", 0, (0,) * len(p.shape), frozenset()))


def _note(target: Holder, box: Box) -> None:
    if not target.written or target.written[-1] != box:  # tied: one memory under two names
        target.written.append(box)
