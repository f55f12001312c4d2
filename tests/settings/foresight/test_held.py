"""Counts of one rank's weights against the layout that draws up every tensor."""

import itertools
from math import prod

import pytest

from megatron_rl.actor.config import ActorConfig
from megatron_rl.resharding.families import canonical_tensors, with_scalar_head
from megatron_rl.resharding.families.architecture import read_architecture
from megatron_rl.resharding.layout import ParallelSizes
from megatron_rl.resharding.layouts.megatron import layout_violations, megatron_layout
from megatron_rl.settings.foresight.held import active, check_buckets, held, whole
from tests.settings.foresight.shapes import LLAMA, MIXTURE, QWEN2, QWEN3_8B, QWEN3_235B, SMALL

SIZES = [
    ParallelSizes(tensor=tensor, pipeline=pipeline, data=data, expert=expert, expert_tensor=cut, virtual=virtual)
    for tensor, pipeline, data, expert, cut, virtual in itertools.product(
        (1, 2, 4), (1, 2, 4), (1, 2), (1, 2), (1, 2), (1, 2)
    )
] + [ParallelSizes(pipeline=3, first_stage=1, last_stage=1), ParallelSizes(context=2, data=2)]


@pytest.mark.parametrize("config", [SMALL, LLAMA, QWEN2, MIXTURE, with_scalar_head(LLAMA), with_scalar_head(SMALL)])
def test_as_many_as_the_layout_has(config: dict) -> None:
    arch, tried = read_architecture(config), 0
    for sizes in SIZES:
        if layout_violations(config, sizes):
            continue
        tried += 1
        for rank, shard in enumerate(megatron_layout(config, sizes).ranks):
            own = held(arch, sizes, rank // sizes.stage)
            assert own.all == sum(prod(shape) for shape in shard.locals.values()), sizes
            experts = sum(prod(shape) for name, shape in shard.locals.items() if ".experts." in name)
            assert own.experts == experts
    assert tried > 10


@pytest.mark.parametrize(("config", "billions", "met"), [(QWEN3_8B, 8.191, 7.57), (QWEN3_235B, 235.094, 21.57)])
def test_known_models(config: dict, billions: float, met: float) -> None:
    """As many as their cards say; ``active`` is without the embedding's rows, which nothing is multiplied with."""
    arch = read_architecture(config)
    assert whole(arch) == sum(spec.elements for spec in canonical_tensors(config).values())
    assert whole(arch) / 1e9 == pytest.approx(billions, abs=0.001)
    assert active(arch) / 1e9 == pytest.approx(met, abs=0.01)


def test_one_bucket_of_all_gradients_overlaps_nothing() -> None:
    arch = read_architecture(SMALL)
    most = whole(arch)
    for size, overlaps, wrong in (
        (most, True, True),
        (most - 1, True, False),
        (most, False, False),
        (None, True, False),
    ):
        config = ActorConfig(megatron={"bucket_size": size, "overlap_grad_reduce": overlaps})
        found = check_buckets(config, arch)
        assert len(found) == wrong and all(
            f"bucket_size={most:,} is not less than the {most:,} weights" in f for f in found
        )
    config = ActorConfig(tensor_parallel=2, megatron={"bucket_size": most - 1, "overlap_grad_reduce": True})
    assert len(check_buckets(config, arch)) == 1  # of which a rank has half
