"""AdamW through Megatron's DistributedOptimizer: gradients reduced, states sharded over data-parallel ranks."""

import math
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer import get_megatron_optimizer

from megatron_rl.actor.config import ActorConfig, OptimizerConfig
from megatron_rl.actor.megatron.fields import OPTIMIZER, REDUCTION
from megatron_rl.actor.megatron.given import given, readable_refusals
from megatron_rl.actor.model import PolicyModel


def reduction_config(config: ActorConfig) -> DistributedDataParallelConfig:
    """How gradients are summed. Raises InputError where Megatron refuses ``actor.megatron``."""
    own: dict[str, Any] = dict(grad_reduce_in_fp32=config.gradients == "float32", use_distributed_optimizer=True)
    if config.fp8_weights:
        own["fp8_param_gather"] = True
    with readable_refusals(config.megatron, REDUCTION):
        return DistributedDataParallelConfig(**own | given(config.megatron, REDUCTION))


def wrap(chunks: list[PolicyModel], config: ActorConfig) -> list[DistributedDataParallel]:
    """Give every chunk its gradient buffers and parameter buffer, shared by the data-parallel ranks.

    Raises InputError where Megatron refuses ``actor.megatron``.
    """
    settings = reduction_config(config)
    wrapped = [
        # later chunks of an interleaved pipeline reduce in one piece, as Megatron-LM has it
        DistributedDataParallel(chunk.config, settings, chunk, disable_bucketing=settings.overlap_grad_reduce and i > 0)
        for i, chunk in enumerate(chunks)
    ]
    several = len(wrapped) > 1
    for chunk in chunks:
        # losses are already divided by the global denominator, so Megatron's own division is left out
        chunk.config.finalize_model_grads_func = lambda model, num_tokens=None, **kwargs: finalize_model_grads(
            model, None, **kwargs
        )
        chunk.config.no_sync_func = [w.no_sync for w in wrapped] if several else wrapped[0].no_sync
        if several and settings.overlap_grad_reduce:
            chunk.config.grad_sync_func = [w.start_grad_sync for w in wrapped]
        if settings.overlap_param_gather and settings.align_param_gather:
            chunk.config.param_sync_func = (
                [w.start_param_sync for w in wrapped] if several else wrapped[0].start_param_sync
            )
    return wrapped


def gather_weights(model: list[Any]) -> None:
    """Have the weights whole on every rank, where ``overlap_param_gather`` left that to a forward pass; collective."""
    for chunk in model:
        if isinstance(chunk, DistributedDataParallel) and chunk.ddp_config.overlap_param_gather:
            chunk.start_param_sync(force_sync=True)


def gather_matrix(chunk: Any, matrix: torch.Tensor) -> None:
    """The same of one matrix, which a forward pass reads past the module that it belongs to."""
    overlaps = isinstance(chunk, DistributedDataParallel) and chunk.ddp_config.overlap_param_gather
    if overlaps and matrix in chunk.param_to_bucket_group:
        chunk.param_to_bucket_group[matrix].finish_param_sync()


def build_optimizer(
    model: list[DistributedDataParallel], config: OptimizerConfig, actor: ActorConfig, dtype: torch.dtype
) -> Any:
    """A fresh optimiser over the wrapped chunks."""
    return get_megatron_optimizer(optimizer_config(config, actor, dtype), model)


def optimizer_config(config: OptimizerConfig, actor: ActorConfig, dtype: torch.dtype) -> MegatronOptimizerConfig:
    """AdamW, and where its state is. Raises InputError where Megatron refuses ``actor.megatron``."""
    own: dict[str, Any] = dict(
        optimizer="adam",
        lr=config.lr,
        min_lr=config.lr * config.min_lr_ratio,
        weight_decay=config.weight_decay,
        adam_beta1=config.beta1,
        adam_beta2=config.beta2,
        adam_eps=config.eps,
        clip_grad=config.clip_grad,
        bf16=dtype == torch.bfloat16,
        params_dtype=dtype,
        use_distributed_optimizer=True,
    )
    with readable_refusals(actor.megatron, OPTIMIZER):
        return MegatronOptimizerConfig(**own | _state(actor) | given(actor.megatron, OPTIMIZER))


def _state(actor: ActorConfig) -> dict[str, Any]:
    """How and where AdamW's state is kept."""
    found: dict[str, Any] = dict(fp8_recipe=actor.fp8) if actor.fp8_weights else {}
    if actor.optimizer_on_host:
        found |= dict(optimizer_cpu_offload=True, optimizer_offload_fraction=actor.optimizer_on_host)
    if actor.moments != "float32":
        moments = getattr(torch, actor.moments)
        found |= dict(exp_avg_dtype=moments, exp_avg_sq_dtype=moments)
    # Megatron's name for: the state need not be float32 copies on the GPU.
    if actor.optimizer_on_host or actor.moments != "float32":
        found |= dict(use_precision_aware_optimizer=True, main_grads_dtype=getattr(torch, actor.gradients))
        # Else of float32 weights only what bfloat16 does not have is kept, and Megatron's reshardable checkpoints take
        # these 16 bits for weights when they are written, and refuse them when they are loaded (its pull request 4222).
        found["store_param_remainders"] = False
    return found


def set_hyperparameters(optimizer: Any, config: OptimizerConfig, lr: float) -> None:
    """Set this step's learning rate, and weight decay per group (Megatron leaves wd_mult, 0 for norms, unapplied).

    And the rest: a checkpoint's groups have those of the run that wrote it.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_mult", 1.0)
        group["weight_decay"] = config.weight_decay * group.get("wd_mult", 1.0)
        group["betas"], group["eps"] = (config.beta1, config.beta2), config.eps


def step_if_finite(optimizer: Any) -> float:
    """One step with the gradients that are there; returns their norm over all ranks before clipping.

    Nothing is changed where the norm is not finite. Megatron's own step would clip by it, which makes every weight a
    NaN, so the norm is taken first: once more, of gradients that are read anyway.
    """
    if optimizer.prepare_grads():  # a scaled float16 loss overflowed
        return math.inf
    if not math.isfinite(norm := float(optimizer.get_grad_norm() or 0.0)):
        return norm
    _, norm, _ = optimizer.step()
    return float(norm or 0.0)
