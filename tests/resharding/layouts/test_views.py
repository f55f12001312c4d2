"""Strided views as boxes, against torch's own views of numbered tensors."""

from math import prod
from random import Random

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_rl.resharding.layouts.learnt.views import pieces


@st.composite
def views(draw: st.DrawFn) -> tuple[tuple[int, ...], torch.Tensor]:
    """An index space, and a view of a numbered tensor that has it."""
    index = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4)))
    view = torch.arange(prod(index)).view(index)
    for what in draw(st.lists(st.sampled_from(["narrow", "transpose", "unflatten", "flatten", "skip"]), max_size=5)):
        dim = draw(st.integers(0, view.dim() - 1))
        size = view.shape[dim]
        if what == "narrow":
            begin = draw(st.integers(0, size - 1))
            view = view.narrow(dim, begin, draw(st.integers(1, size - begin)))
        elif what == "transpose":
            view = view.transpose(0, dim)
        elif what == "unflatten":
            view = view.unflatten(dim, (draw(st.sampled_from([n for n in range(1, size + 1) if size % n == 0])), -1))
        elif what == "flatten" and view.is_contiguous():
            view = view.view(-1)
        elif what == "skip":
            view = view[(slice(None),) * dim + (slice(None, None, 2),)]
    return index, view


@settings(max_examples=300, deadline=None)
@given(views(), st.randoms())
def test_boxes_are_what_the_view_shows(case: tuple[tuple[int, ...], torch.Tensor], shuffle: Random) -> None:
    index, view = case
    order = list(range(view.dim()))
    shuffle.shuffle(order)
    other = torch.full([view.shape[i] for i in order], -1)
    there = other.permute([order.index(i) for i in range(view.dim())])  # the view's shape, in another order of memory
    whole, landed = torch.arange(prod(index)).view(index), 0
    for p in pieces(index, int(view.storage_offset()), tuple(view.shape), view.stride(), 0, there.stride()):
        box = whole[tuple(slice(i, i + n) for i, n in zip(p.start, p.shape, strict=True))]
        other.view(-1).as_strided(p.shape, p.strides, p.offset).copy_(box)
        landed += prod(p.shape)
    assert landed == view.numel()
    assert torch.equal(there, view)


def test_rows_that_are_not_aligned_to_the_groups_are_three_boxes() -> None:
    # q_proj [4 groups x 3 rows, 5]: rows 2 to 10 of it, into rows of 5 at 100
    found = list(pieces((4, 3, 5), 10, (9, 5), (5, 1), 100, (5, 1)))
    assert [(p.start, p.shape, p.offset) for p in found] == [
        ((0, 2, 0), (1, 1, 5), 100),
        ((1, 0, 0), (2, 3, 5), 105),
        ((3, 0, 0), (1, 2, 5), 135),
    ]
    assert found[1].strides == (15, 5, 1)


def test_aligned_rows_are_one_box() -> None:
    assert [(p.start, p.shape, p.strides) for p in pieces((4, 3, 5), 15, (6, 5), (5, 1), 0, (5, 1))] == [
        ((1, 0, 0), (2, 3, 5), (15, 5, 1))
    ]
    assert [p.shape for p in pieces((4, 6), 0, (6, 4), (1, 6), 0, (4, 1))] == [(4, 6)]  # transposed
    assert [p.shape for p in pieces((8, 6), 0, (2, 6), (24, 1), 0, (6, 1))] == [(1, 6), (1, 6)]  # every fourth row
