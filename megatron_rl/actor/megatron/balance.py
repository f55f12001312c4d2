"""Megatron's losses of routers (``moe_aux_loss_coeff``, ``moe_z_loss_coeff``) beside losses that come normalised.

Megatron multiplies such a loss by the tokens that a router sees of a micro-batch, and expects all gradients to be
divided by the tokens of the whole mini-batch afterwards. Here the objective is normalised already and nothing is
divided. So these losses are scaled by one over that number of tokens: what is added to the objective is coefficient x
loss, in the mean over micro-batches, each weighted by its tokens.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_rl.actor import accelerator


def has_router_losses(config: Any) -> bool:
    """Whether a ``TransformerConfig`` asks for any."""
    kinds, coefficients = config.moe_router_load_balancing_type, config.moe_aux_loss_coeff
    balanced = any(coefficients) if isinstance(coefficients, list) else bool(coefficients)
    return bool(config.num_moe_experts) and bool((balanced and kinds != "none") or config.moe_z_loss_coeff)


def scale_router_losses(chunks: Sequence[Any], tokens: int) -> float:
    """Scale them in the coming update; returns by what its objective must be multiplied, for it is scaled as well.

    ``tokens``: of this rank's micro-batches, as its routers see them. Collective over the data-parallel ranks.
    """
    config = chunks[0].config
    if not has_router_losses(config):
        return 1.0
    total = torch.tensor(float(tokens), device=accelerator.device())
    dist.all_reduce(total, group=parallel_state.get_data_parallel_group())
    count = float(total)
    config.grad_scale_func = lambda loss: loss / count
    return count
