"""Boxes that have nothing in common, however many there are."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_rl.resharding.proof import FEW, disjoint

Boxes = list[tuple[tuple[int, ...], tuple[int, ...]]]


def meet(boxes: Boxes) -> bool:
    """Whether any two do, pair by pair."""
    return any(
        all(a < d and c < b for a, b, c, d in zip(*one, *other, strict=True)) for one, other in combinations(boxes, 2)
    )


def divided(rng: np.random.Generator, low: list[int], high: list[int], count: int) -> Boxes:
    """A box cut into ``count`` at random, where it is large enough."""
    long = [i for i, (a, b) in enumerate(zip(low, high, strict=True)) if b - a > 1]
    if count < 2 or not long:
        return [(tuple(low), tuple(high))]
    axis = int(rng.choice(long))
    cut = int(rng.integers(low[axis] + 1, high[axis]))
    first, second = [*high], [*low]
    first[axis] = second[axis] = cut
    return divided(rng, low, first, count // 2) + divided(rng, second, high, count - count // 2)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(FEW + 1, 3 * FEW), st.integers(0, 2))
def test_many_boxes_are_judged_as_pair_by_pair(seed: int, dimensions: int, count: int, grown: int) -> None:
    """Cuts of one box, in any order; and some of them grown by one element in one direction."""
    rng = np.random.default_rng(seed)
    boxes = divided(rng, [0] * dimensions, [int(n) for n in rng.integers(40, 400, dimensions)], count)
    for at in rng.integers(0, len(boxes), grown):
        low, high = boxes[at]
        axis = int(rng.integers(dimensions))
        boxes[at] = low, (*high[:axis], high[axis] + 1, *high[axis + 1 :])
    rng.shuffle(boxes)
    assert disjoint(boxes) == (not meet(boxes))


def test_a_pinwheel_that_no_cut_parts_is_disjoint() -> None:
    wheel = [((0, 0), (2, 1)), ((0, 1), (1, 3)), ((1, 2), (3, 3)), ((2, 0), (3, 2)), ((1, 1), (2, 2))]
    many = [(tuple(n + 3 * k for n in low), tuple(n + 3 * k for n in high)) for k in range(FEW) for low, high in wheel]
    assert disjoint(many)
    assert not disjoint([*many, ((4, 4), (5, 5))])


@pytest.mark.parametrize("layers, experts", [(48, 256)])
def test_one_box_per_layer_and_expert(layers: int, experts: int) -> None:
    boxes = [((i, j, 0), (i + 1, j + 1, 8)) for i in range(layers) for j in range(experts)]
    assert disjoint(boxes)
    assert not disjoint([*boxes, ((7, 9, 7), (8, 10, 8))])
