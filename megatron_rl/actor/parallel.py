"""torch.distributed and Megatron's parallel groups for one trainer rank."""

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from megatron_rl.actor import platform
from megatron_rl.actor.config import ActorConfig

_PATIENCE = timedelta(days=1)  # with rank 0, which generates and scores; a rank that dies ends the run at once
_objects: dist.ProcessGroup | None = None  # see share; None: the default group, which is gloo's already


def initialize(config: ActorConfig, seed: int) -> None:
    """Join the job and build its groups; RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT as torchrun sets them.

    Order of ranks: tensor, context, expert, data, pipeline, fastest first.
    """
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    platform.adapt()
    torch.set_num_threads(config.threads)
    if platform.on_gpu():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if not dist.is_initialized():
        dist.init_process_group(platform.backend(), timeout=timedelta(minutes=30))
        if platform.on_gpu():
            global _objects
            _objects = dist.new_group(backend="gloo", timeout=_PATIENCE)
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=config.tensor_parallel,
        pipeline_model_parallel_size=config.pipeline_parallel,
        virtual_pipeline_model_parallel_size=config.virtual_pipeline if config.virtual_pipeline > 1 else None,
        context_parallel_size=config.context_parallel,
        expert_model_parallel_size=config.expert_parallel,
        expert_tensor_parallel_size=1,
    )
    model_parallel_cuda_manual_seed(seed)
    torch.manual_seed(seed)


def share(value: Any) -> Any:
    """Rank 0's value (picklable), on every rank.

    It and the two below go over the host: over NCCL a rank that waits for rank 0 would keep its GPU from whatever else
    is sent from there meanwhile, and its watchdog would end it after half an hour.
    """
    box = [value]
    dist.broadcast_object_list(box, src=0, group=_objects)
    return box[0]


def gather(value: Any) -> list[Any]:
    """Every rank's value (picklable), on rank 0; empty on the others."""
    values: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(value, values, group=_objects)
    return values or []


def barrier() -> None:
    """Wait for all ranks; not for their GPUs."""
    dist.barrier(group=_objects)


def shutdown() -> None:
    """Leave the job."""
    from megatron.core import parallel_state

    global _objects
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()
    _objects = None
