"""AdamW through Megatron's DistributedOptimizer: gradients reduced, states sharded over data-parallel ranks."""

import math
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer import get_megatron_optimizer

from megatron_rl.actor.config import OptimizerConfig
from megatron_rl.actor.model import PolicyModel


def wrap(chunks: list[PolicyModel]) -> list[DistributedDataParallel]:
    """Give every chunk its gradient buffers (fp32) and parameter buffer, shared by the data-parallel ranks."""
    settings = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True, use_distributed_optimizer=True, overlap_grad_reduce=False, overlap_param_gather=False
    )
    wrapped = [DistributedDataParallel(chunk.config, settings, chunk) for chunk in chunks]
    for chunk in chunks:
        # losses are already divided by the global denominator, so Megatron's own division is left out
        chunk.config.finalize_model_grads_func = lambda model, num_tokens=None, **kwargs: finalize_model_grads(
            model, None, **kwargs
        )
        chunk.config.no_sync_func = [w.no_sync for w in wrapped] if len(wrapped) > 1 else wrapped[0].no_sync
    return wrapped


def build_optimizer(model: list[DistributedDataParallel], config: OptimizerConfig, dtype: torch.dtype) -> Any:
    """A fresh optimiser over the wrapped chunks."""
    return get_megatron_optimizer(
        MegatronOptimizerConfig(
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
        ),
        model,
    )


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
