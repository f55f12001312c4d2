"""torch.distributed and Megatron's parallel groups for one trainer rank."""

import os
from datetime import timedelta

import torch
import torch.distributed as dist

from megatron_rl.actor import platform
from megatron_rl.actor.config import ActorConfig


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


def shutdown() -> None:
    """Leave the job."""
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()
