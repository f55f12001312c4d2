"""Copies read out on the destination's own machine."""

from collections import Counter

import pytest

from megatron_rl.resharding.layout import ParallelSizes
from megatron_rl.resharding.layouts.megatron import megatron_layout
from megatron_rl.resharding.layouts.sglang import EngineSizes, sglang_layout
from megatron_rl.resharding.layouts.transformers import transformers_layout
from megatron_rl.resharding.nearest import Nearness, brought_near
from megatron_rl.resharding.plan import make_plan
from megatron_rl.resharding.proof import prove
from tests.resharding.test_plan import QWEN3

SIZES = {
    "tensor": ParallelSizes(tensor=2, data=4),
    "pipeline": ParallelSizes(tensor=2, pipeline=2, data=2),
    "alone": ParallelSizes(data=4),
}


@pytest.mark.parametrize("name", SIZES)
def test_near_replicas_take_over_what_far_ones_would_send(name: str) -> None:
    hf_config, sizes = QWEN3, SIZES[name]
    source, destination = megatron_layout(hf_config, sizes), transformers_layout(hf_config)
    plan = make_plan(source, destination)
    # data-parallel neighbours in turn, so that every shard has a rank on both machines
    places = tuple("ab"[rank // sizes.tensor % 2] for rank in range(sizes.world))
    near = brought_near(plan, source, Nearness(places, ("b",)))
    prove(near, source, destination)
    assert {places[c.source_rank] for c in near.copies} == {"b"}
    assert [c._replace(source_rank=0) for c in near.copies] == [c._replace(source_rank=0) for c in plan.copies]
    shards: dict[int, Counter[int]] = {}
    for c in near.copies:
        shards.setdefault(id(source.ranks[c.source_rank]), Counter())[c.source_rank] += c.elements
    for sent in shards.values():  # two near replicas share what is to be sent
        assert max(sent.values()) - min(sent.values()) <= max(c.elements for c in near.copies)


def test_each_part_of_an_engine_is_sent_to_from_its_own_machine() -> None:
    source = megatron_layout(QWEN3, ParallelSizes(tensor=2, data=2))
    destination = sglang_layout(QWEN3, EngineSizes(tensor=4))
    places = ("a", "a", "b", "b")
    near = brought_near(make_plan(source, destination), source, Nearness(places, ("a", "a", "b", "c")))
    prove(near, source, destination)
    sent = {(c.destination_rank, places[c.source_rank]) for c in near.copies}
    assert {place for rank, place in sent if rank < 2} == {"a"}
    assert {place for rank, place in sent if rank == 2} == {"b"}
    plain = make_plan(source, destination)
    kept = [(c, p) for c, p in zip(near.copies, plain.copies, strict=True) if c.destination_rank == 3]
    assert kept and all(c == p for c, p in kept)  # nobody is near


def test_where_nobody_is_near_the_plan_stays() -> None:
    hf_config = QWEN3
    source = megatron_layout(hf_config, ParallelSizes(tensor=2, data=2))
    plan = make_plan(source, transformers_layout(hf_config))
    assert brought_near(plan, source, Nearness(("a", "a", "a", "a"), ("c",))) is plan
    assert brought_near(plan, source, Nearness()) is plan
    half = brought_near(plan, source, Nearness(("c", "a", "a", "a"), ("c",)))  # one tensor-parallel half of the weights
    assert {c.source_rank for c in half.copies if source.ranks[c.source_rank] is source.ranks[0]} == {0}
