"""Copies and their hashes: against torch's own strided views and xxh3 of the plain bytes."""

import itertools

import numpy as np
import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_rl.resharding.execute import BAND, flat, merged, pull, source_hashes
from megatron_rl.resharding.layout import row_major
from megatron_rl.resharding.plan import Copy

Ints = tuple[int, ...]


def copy(shape: Ints, read: Ints, write: Ints, source_offset: int = 0, destination_offset: int = 0) -> Copy:
    return Copy("w", (0,) * len(shape), shape, 0, "s", source_offset, read, 0, "d", destination_offset, write)


def digest(tensor: torch.Tensor) -> int:
    return xxhash.xxh3_64_intdigest(tensor.contiguous().view(torch.uint8).numpy().tobytes())


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Ints, Ints]:
    """A shape and the strides of a box of it cut out of a larger row-major tensor."""
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    outer = (shape[0], *(n + draw(st.integers(0, 1)) for n in shape[1:]))
    return shape, row_major(outer)


@settings(max_examples=200, deadline=None)
@given(layouts(), st.data())
def test_merged_addresses_the_same_elements_in_the_same_order(box: tuple[Ints, Ints], data: st.DataObject) -> None:
    shape, strides = box
    other = data.draw(st.sampled_from([row_major(shape), strides]))
    fewer, (mine, theirs) = merged(shape, strides, other)
    assert len(fewer) <= max(1, sum(n > 1 for n in shape))

    def addresses(extents: Ints, steps: Ints) -> list[int]:
        return [
            sum(i * s for i, s in zip(index, steps, strict=True)) for index in itertools.product(*map(range, extents))
        ]

    assert addresses(fewer, mine) == addresses(shape, strides)
    assert addresses(fewer, theirs) == addresses(shape, other)


def test_merged_finds_runs() -> None:
    assert merged((8, 4, 16), (64, 16, 1), (64, 16, 1)) == ((512,), ((1,), (1,)))
    assert merged((8, 4, 16), (96, 16, 1), (64, 16, 1)) == ((8, 64), ((96, 1), (64, 1)))
    assert merged((8, 1, 16), (96, 7, 1)) == ((8, 16), ((96, 1),))
    assert merged((1, 1), (5, 3)) == ((1,), ((1,),))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("large", [False, True])
def test_what_lands_is_hashed(dtype: torch.dtype, large: bool) -> None:
    """Columns of one matrix into columns of another, in one band and in many; neither starts its storage."""
    rows, width = (BAND // 512 + 3, 1024) if large else (5, 6)
    torch.manual_seed(0)
    source, destination = torch.randn(7 + rows * width)[7:], torch.zeros(3 + rows * width, dtype=dtype)[3:]
    half = width // 2
    moved = copy((rows, half), (width, 1), (width, 1), half, 1)
    (hash_,) = pull([moved], {(0, "s"): source}, {"d": destination})
    expected = source.view(rows, width)[:, half:].to(dtype)
    assert torch.equal(destination.view(rows, width)[:, 1 : half + 1], expected)
    assert not destination.view(rows, width)[:, 0].any() and not destination.view(rows, width)[:, half + 1 :].any()
    assert hash_ == digest(expected)
    assert source_hashes([moved], {"s": source}, dtype) == hash_
    assert source_hashes([moved], {"s": source}, {"d": dtype}) == hash_


@settings(max_examples=60, deadline=None)
@given(layouts(), layouts(), st.sampled_from([torch.uint8, torch.bfloat16, torch.float32, torch.float64]))
def test_any_boxes_land_where_they_should(
    read: tuple[Ints, Ints], write: tuple[Ints, Ints], dtype: torch.dtype
) -> None:
    """Several threads and one, against torch's own copy; around a box nothing is touched."""
    shape, steps = read[0], (read[1], write[1] if write[0] == read[0] else row_major(read[0]))
    source = torch.arange(7, 7 + 700).to(dtype)
    expected = torch.zeros(700, dtype=dtype)
    expected.as_strided(shape, steps[1], 3).copy_(source.as_strided(shape, steps[0], 5))
    copies = [copy(shape, *steps, 5, 3)] * 3
    threads = torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        try:
            hashes = pull(copies, {(0, "s"): source}, {"d": (landed := torch.zeros_like(expected))})
        finally:
            torch.set_num_threads(threads)
        assert torch.equal(landed, expected)
        assert hashes.tolist() == [digest(expected.as_strided(shape, steps[1], 3))] * 3


@pytest.mark.parametrize("threads", [1, 2])
def test_parts_of_the_same_rows_land_in_turn(threads: int) -> None:
    """Halves of a matrix from two ranks, and a third copy that is cut as they are, but lies elsewhere."""
    rows, half, before = 3 * BAND // 1024 + 5, 512, torch.get_num_threads()
    halves = [torch.randn(rows, half).to(torch.bfloat16) for _ in range(2)]
    moved = [
        copy((rows, half), (half, 1), (2 * half, 1), 0, half * rank)._replace(source_rank=rank) for rank in range(2)
    ]
    moved.insert(1, moved[0]._replace(destination="e"))
    sources = {(rank, "s"): flat(held) for rank, held in enumerate(halves)}
    d, e = (torch.zeros(2 * rows * half, dtype=torch.bfloat16) for _ in range(2))
    torch.set_num_threads(threads)
    try:
        hashes = pull(moved, sources, {"d": d, "e": e})
    finally:
        torch.set_num_threads(before)
    assert torch.equal(d.view(rows, 2 * half), torch.cat(halves, 1))
    assert torch.equal(e.view(rows, 2 * half), torch.cat([halves[0], torch.zeros_like(halves[0])], 1))
    assert hashes.tolist() == [digest(halves[0]), digest(halves[0]), digest(halves[1])]


def test_what_is_hashed_is_read_from_the_destination() -> None:
    """Rows that lie over each other there: what is written first does not stay."""
    source = torch.arange(6.0)
    over = copy((2, 3), (3, 1), (2, 1))
    (landed,) = pull([over], {(0, "s"): source}, {"d": (destination := torch.zeros(5))})
    assert landed == digest(destination.as_strided((2, 3), (2, 1)))
    assert landed != digest(source) == source_hashes([over], {"s": source}, None)


def test_a_single_huge_row_is_cut_into_bands() -> None:
    count = 3 * BAND // 4 + 1  # three bands of float32
    source, destination = torch.arange(2 * count, dtype=torch.float32), torch.zeros(2 * (count + 1))
    moved = copy((2, count), (count, 1), (count + 1, 1))
    (hash_,) = pull([moved], {(0, "s"): source}, {"d": destination})
    assert torch.equal(destination.view(2, -1)[:, :count].flatten(), source)
    assert hash_ == digest(source) == source_hashes([moved], {"s": source}, None)


def test_permutations_are_seen() -> None:
    """Exchanged rows and gate in up's place keep every sum."""
    weights = torch.randn(8, 4)
    whole = copy((8, 4), (4, 1), (4, 1))
    hashes = {
        int(source_hashes([whole], {"s": flat(w)}, None)[0])
        for w in (
            weights,
            weights[[1, 0, *range(2, 8)]],
            torch.cat([weights[4:], weights[:4]]),
            weights.T.reshape(8, 4),
        )
    }
    assert len(hashes) == 4


def test_hashes_are_unsigned_and_in_order() -> None:
    source = torch.arange(6.0)
    copies = [copy((2,), (1,), (1,), 2 * i, 2 * i) for i in (2, 0, 1)]
    hashes = pull(copies, {(0, "s"): source}, {"d": torch.zeros(6)})
    assert hashes.dtype == np.uint64
    assert hashes.tolist() == [digest(source[2 * i : 2 * i + 2]) for i in (2, 0, 1)]


def test_a_tensor_with_gaps_has_no_flat_view() -> None:
    with pytest.raises(ValueError, match=r"shape \(3, 2\) and strides \(4, 1\) is not contiguous"):
        flat(torch.zeros(3, 4)[:, :2])
