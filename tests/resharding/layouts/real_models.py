"""Builds real Megatron models, one rank at a time, in jobs whose other ranks are fake.

stdin: JSON list of (config.json, options of the actor, ranks, world size); stdout: what each of the ranks holds.
A process of its own, because the CPU adaptation of Megatron changes torch for good.
"""

import json
import sys
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron_rl.actor import accelerator
from megatron_rl.actor.config import ActorConfig
from megatron_rl.actor.model import build_model
from megatron_rl.resharding.families.architecture import read_architecture


def build(config: dict[str, Any], actor: ActorConfig, rank: int, world: int) -> dict[str, Any]:
    """Shapes by local name, global number (from 0) by place of every decoder layer, and the expert-parallel rank."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    parallel_state.initialize_model_parallel(
        actor.tensor_parallel,
        actor.pipeline_parallel,
        actor.virtual_pipeline if actor.virtual_pipeline > 1 else None,
        context_parallel_size=actor.context_parallel,
        expert_model_parallel_size=actor.expert_parallel,
        expert_tensor_parallel_size=actor.expert_tensor_parallel,
        create_gloo_process_groups=False,
    )
    model_parallel_cuda_manual_seed(0)
    chunks = build_model(read_architecture(config), actor, torch.float32)
    found = {
        "shapes": {f"{i}/{n}": p.shape for i, chunk in enumerate(chunks) for n, p in chunk.named_parameters()},
        "layers": {
            f"{i}/decoder.layers.{j}": layer.layer_number - 1
            for i, chunk in enumerate(chunks)
            for j, layer in enumerate(chunk.decoder.layers)
        },
        "expert_rank": parallel_state.get_expert_model_parallel_rank(),
    }
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()
    return found


if __name__ == "__main__":
    accelerator.adapt()
    result = [
        [build(config, ActorConfig(**options), rank, world) for rank in ranks]
        for config, options, ranks, world in json.load(sys.stdin)
    ]
    print(json.dumps(result))
