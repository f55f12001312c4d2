"""Replicas that drifted apart are found, whichever rank and tensor it is; others are not."""

from typing import Any

import pytest
import torch

from megatron_rl.resharding.layout import ParallelSizes
from megatron_rl.resharding.layouts.megatron import megatron_layout
from megatron_rl.resharding.replicas import Replicas
from tests.resharding.reference import hf_tensors, megatron_shards
from tests.resharding.test_swap import CONFIG


def found(replicas: Replicas, ranks: list[dict[str, torch.Tensor]]) -> list[tuple[str, int, int]]:
    return replicas.differing([replicas.hashes(rank, parameters) for rank, parameters in enumerate(ranks)])


@pytest.mark.parametrize(
    ("sizes", "local", "rank", "expected"),
    [
        (dict(tensor=2), "0/decoder.final_layernorm.weight", 1, ("model.norm.weight", 0, 1)),
        # without expert parallelism tensor-parallel ranks hold all experts
        (
            dict(tensor=2),
            "0/decoder.layers.1.mlp.experts.local_experts.3.linear_fc2.weight",
            0,
            ("model.layers.1.mlp.experts.3.down_proj.weight", 0, 1),
        ),
        (
            dict(data=2, tensor=2),
            "0/decoder.layers.0.mlp.linear_fc2.weight",
            2,
            ("model.layers.0.mlp.down_proj.weight", 0, 2),
        ),
        # the first and the last stage hold the tied embeddings
        (dict(pipeline=2), "0/output_layer.weight", 1, ("model.embed_tokens.weight", 0, 1)),
    ],
)
def test_a_changed_replica_is_named(
    sizes: dict[str, int], local: str, rank: int, expected: tuple[str, int, int]
) -> None:
    config: dict[str, Any] = CONFIG
    parallel = ParallelSizes(**sizes)
    shards = megatron_shards(hf_tensors(config, tags=False), config, parallel)
    ranks = [{name: t.clone() for name, t in shard.items()} for shard in shards]
    replicas = Replicas(megatron_layout(config, parallel))
    assert len(replicas) > 0 and found(replicas, ranks) == []
    ranks[rank][local].view(-1)[0] += 1
    assert found(replicas, ranks) == [expected]


def test_what_one_rank_holds_alone_is_no_replica() -> None:
    assert len(Replicas(megatron_layout(CONFIG, ParallelSizes()))) == 0
