"""Which ranks read weights out for a destination."""

from collections import Counter

import pytest

from megatron_rl.resharding.layout import Layout, ParallelSizes
from megatron_rl.resharding.layouts.megatron import megatron_layout
from megatron_rl.resharding.layouts.transformers import transformers_layout
from megatron_rl.resharding.nearest import Nearness, read_by, readers
from megatron_rl.resharding.plan import make_plan
from megatron_rl.resharding.proof import prove
from tests.resharding.test_plan import QWEN3

EXPERTS = QWEN3 | {"model_type": "qwen3_moe", "num_experts": 4, "moe_intermediate_size": 8, "mlp_only_layers": [0]}

SIZES = {
    "tensor": (QWEN3, ParallelSizes(tensor=2, data=4)),
    "pipeline": (QWEN3, ParallelSizes(tensor=2, pipeline=2, data=2)),
    "alone": (QWEN3, ParallelSizes(data=4)),
    "experts": (EXPERTS, ParallelSizes(tensor=2, data=4, expert=2)),
}


def shards_of(layout: Layout, ranks: tuple[int, ...]) -> Counter[int]:
    return Counter(id(layout.ranks[rank]) for rank in ranks)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("workers", [1, 8])
def test_near_replicas_take_over_what_far_ones_would_send(name: str, workers: int) -> None:
    hf_config, sizes = SIZES[name]
    source, destination = megatron_layout(hf_config, sizes), transformers_layout(hf_config)
    plan = make_plan(source, destination)
    # data-parallel neighbours on two machines, so that every shard has a rank on both
    places = tuple("ab"[rank // (sizes.world // 2)] for rank in range(sizes.world))
    if sizes.pipeline > 1:
        places = tuple("ab"[rank // sizes.tensor % 2] for rank in range(sizes.world))
    chosen = readers(source, Nearness(places, ("b",), workers))
    assert {places[rank] for rank in chosen} == {"b"}
    assert len(chosen) == min(sum(place == "b" for place in places), max(workers, len(shards_of(source, chosen))))
    near = read_by(plan, source, chosen)
    prove(near, source, destination)
    assert {c.source_rank for c in near.copies} == set(chosen)
    assert [c._replace(source_rank=0) for c in near.copies] == [c._replace(source_rank=0) for c in plan.copies]
    shards: dict[int, Counter[int]] = {}
    for c in near.copies:
        shards.setdefault(id(source.ranks[c.source_rank]), Counter())[c.source_rank] += c.elements
    for sent in shards.values():  # replicas share what is to be sent
        assert max(sent.values()) - min(sent.values()) <= max(c.elements for c in near.copies)


def test_destinations_that_nobody_is_near_take_turns_over_whole_replicas() -> None:
    source = megatron_layout(QWEN3, ParallelSizes(tensor=2, data=4))
    places = ("a",) * 8
    assert [readers(source, Nearness(places, ("c",), 2, number)) for number in range(5)] == [
        (0, 1),
        (2, 3),
        (4, 5),
        (6, 7),
        (0, 1),
    ]
    assert readers(source, Nearness(places, ("c",), 4, 1)) == (4, 5, 6, 7)  # as many as it has workers
    assert readers(source, Nearness()) == (0, 1)
    assert readers(source, Nearness(("a",) * 6 + ("c", "c"), ("c",), 1, 7)) == (6, 7)  # the near ones, whoever's turn
    spread = Nearness(("a", "a", "b", "b", "c", "c", "d", "d"), ("b", "d"), 4)  # its workers are on two machines
    assert readers(source, spread) == (2, 3, 6, 7)
    assert readers(source, Nearness(("c", *places[1:]), ("c",), 1, 2)) == (0, 5)  # where only half of them are near


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("number", [0, 3])
def test_readers_hold_everything_between_them(name: str, number: int) -> None:
    hf_config, sizes = SIZES[name]
    source, destination = megatron_layout(hf_config, sizes), transformers_layout(hf_config)
    chosen = readers(source, Nearness(workers=2, number=number))
    assert shards_of(source, chosen).keys() == shards_of(source, tuple(range(sizes.world))).keys()
    prove(read_by(make_plan(source, destination), source, chosen), source, destination)
