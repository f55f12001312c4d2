"""Packing into chunks: every element once and in order, inside every bound."""

from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_rl.errors import InputError
from megatron_rl.resharding.execute import box
from megatron_rl.resharding.layout import ParallelSizes, row_major
from megatron_rl.resharding.layouts.megatron import megatron_layout
from megatron_rl.resharding.layouts.sglang import EngineSizes, sglang_layout
from megatron_rl.resharding.plan import Copy, make_plan
from megatron_rl.resharding.transports.chunks import AHEAD, ALIGNMENT, ALONE, chunk_bytes, schedule
from megatron_rl.resharding.transports.endpoints import Endpoints
from megatron_rl.resharding.transports.point_to_point import PointToPointDestination, PointToPointSource

CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 8,
    "intermediate_size": 64,
    "vocab_size": 640,
    "num_hidden_layers": 3,
    "tie_word_embeddings": False,
}
DTYPES = [torch.float8_e4m3fn, torch.bfloat16, torch.float32]


@st.composite
def links(draw: st.DrawFn) -> tuple[list[Copy], list[int]]:
    """Boxes with gaps around them on either side, and the bytes of their elements."""
    copies, itemsizes = [], []
    for number in range(draw(st.integers(1, 6))):
        shape = tuple(draw(st.lists(st.integers(1, 12), min_size=1, max_size=3)))
        read, write = (row_major((*shape[:-1], shape[-1] + draw(st.integers(0, 2)))) for _ in range(2))
        name = str(number)
        copies.append(Copy(name, (0,) * len(shape), shape, 0, name, 0, read, 0, name, 0, write))
        itemsizes.append(draw(st.sampled_from(DTYPES)).itemsize)
    return copies, itemsizes


@settings(max_examples=150, deadline=None)
@given(links(), st.integers(4, 40))
def test_chunks_carry_every_element_once_and_in_order(link: tuple[list[Copy], list[int]], sixteenths: int) -> None:
    copies, itemsizes = link
    capacity = sixteenths * ALIGNMENT
    seen: list[list[Any]] = [[] for _ in copies]
    numbers = []
    for chunk in schedule(copies, itemsizes, capacity):
        used = np.zeros(chunk.size, dtype=int)
        assert 0 < chunk.size <= capacity
        for piece in chunk.pieces:
            c = copies[piece.copy]
            numbers.append(piece.copy)
            assert piece.offset % ALIGNMENT == 0
            used[piece.offset : piece.offset + piece.size] += 1
            source = torch.arange(1000 * 15, dtype=torch.int64)
            elements = box(source, piece.shape, piece.source_strides, 0)[piece.part]
            there = box(source, piece.shape, piece.destination_strides, 0)[piece.part]
            assert elements.shape == there.shape and elements.numel() * itemsizes[piece.copy] == piece.size
            seen[piece.copy].append((elements.flatten(), there.flatten(), piece.last))
        assert used.max() == 1
    assert numbers == sorted(numbers)
    for c, parts in zip(copies, seen, strict=True):
        addresses = torch.arange(15000)
        assert [last for *_, last in parts] == [False] * (len(parts) - 1) + [True]
        for side, strides in enumerate((c.source_strides, c.destination_strides)):
            whole = addresses.as_strided(c.shape, strides).flatten()
            assert torch.equal(torch.cat([part[side] for part in parts]), whole)


def test_both_ends_fit_their_buffer() -> None:
    """Sources with many destinations and destinations with many sources agree on every link's chunk."""
    plan = make_plan(
        megatron_layout(CONFIG, ParallelSizes(tensor=2, pipeline=3)), sglang_layout(CONFIG, EngineSizes(8, data=2))
    )
    pairs = {(c.source_rank, c.destination_rank) for c in plan.copies}
    assert len(pairs) > 16
    sizes = {pair: chunk_bytes(plan, *pair, 1 << 16) for pair in pairs}
    for side, ranks in ((0, plan.sources), (1, plan.destinations)):
        totals = [sum(size for pair, size in sizes.items() if pair[side] == rank) for rank in range(ranks)]
        assert max(totals) <= 1 << 16 and min(totals) > 0
    busiest = max(sum(pair[0] == rank for pair in pairs) for rank in range(plan.sources))
    assert min(sizes.values()) == (1 << 16) // busiest // ALIGNMENT * ALIGNMENT
    with pytest.raises(InputError, match=rf"A swap buffer of 1024 bytes is too small for the {busiest} links"):
        chunk_bytes(plan, *min(pairs, key=lambda p: sizes[p]), 1024)


def test_large_pieces_travel_alone() -> None:
    """As messages that are as long as they may be; small ones together between them, in the copies' order."""
    shape, strides = (1000, 1024), ((1024, 1), (2048, 1))
    large = Copy("w", (0, 0), shape, 0, "w", 0, strides[0], 0, "w", 0, strides[1])
    small = large._replace(shape=(10,), source_strides=(1,), destination_strides=(1,))
    chunks = schedule([small, large, small, small], [2] * 4, 1 << 20)
    assert [[piece.copy for piece in chunk.pieces] for chunk in chunks] == [[0], [1], [1], [2, 3]]
    assert [chunk.size for chunk in chunks] == [20, 1 << 20, 488 * 2048, 32 + 20]
    assert all(chunk.size >= ALONE for chunk in chunks[1:3])


@pytest.mark.parametrize("tensor", [1, 2])
def test_messages_under_way_share_no_memory(tensor: int) -> None:
    """A chunk waits for the last one of its slot alone, and eight may be under way where none needs a slot."""
    layouts = (
        megatron_layout(CONFIG, ParallelSizes(tensor=2)),
        sglang_layout(CONFIG, EngineSizes(tensor)),
    )
    plan, ends = make_plan(*layouts), Endpoints(range(2), range(2, 2 + tensor), buffer=1 << 14)
    held = [
        [{n: torch.zeros(shape) for n, shape in rank.locals.items()} for rank in layout.ranks] for layout in layouts
    ]
    together = []
    for end in (
        *(PointToPointSource(plan, rank, own, torch.float32, ends) for rank, own in enumerate(held[0])),
        *(PointToPointDestination(plan, rank, own, ends) for rank, own in enumerate(held[1])),
    ):
        for link in end.links.values():
            for number, after in enumerate(accumulate(link.after, max)):  # begun in turn
                assert number - AHEAD <= after < number
                spans = sorted(
                    (message.data_ptr(), message.data_ptr() + message.numel())
                    for message in map(link.message, range(after + 1, number + 1))
                )
                assert all(end <= begin for (_, end), (begin, _) in pairwise(spans))
                together.append((len(spans), after > number - AHEAD))
    assert max(together)[0] == AHEAD
    assert any(by_slot for _, by_slot in together)
