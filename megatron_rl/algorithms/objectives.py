"""Objectives: flat token tensors to a scalar loss and its metrics.

Every tensor is [tokens] float32 and holds one micro-batch. ``weights`` come from ``aggregation``: a token that is not
trained has weight 0. The loss and every metric are weighted sums, so that adding them up over micro-batches and
data-parallel ranks gives the mini-batch's value.
"""

import torch

from megatron_rl.algorithms.algorithm import Loss
from megatron_rl.algorithms.config import AlgorithmConfig
from megatron_rl.algorithms.kl import token_kl


def policy_loss(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    weights: torch.Tensor,
    config: AlgorithmConfig,
    ref_logprobs: torch.Tensor | None = None,
    entropy: torch.Tensor | None = None,
    correction: torch.Tensor | None = None,
) -> Loss:
    """PPO's clipped surrogate (arXiv 1707.06347, eq. 7; separate bounds: arXiv 2503.14476) with KL and entropy terms.

    loss = sum(weights * (c max(-r A, -clip(r, 1 - clip_low, 1 + clip_high) A) + kl_coef * KL - entropy_coef * entropy))
    with r = exp(logprobs - old_logprobs), the exponent clamped to +-20 as in verl's core_algos.

    old_logprobs: of the policy that sampled (that being trained, detached, before its first update: r = 1).
    correction: c, the factor of the surrogate alone (``importance_weights``; a constant); 1 when it is not given.
    ref_logprobs: needed when kl_coef is not 0. entropy: needed when entropy_coef is not 0, else only reported.
    Metrics (detached scalars): loss, policy_loss, ratio, clip_fraction; kl and entropy where their inputs are given.
    """
    if ref_logprobs is None and config.kl_coef != 0:
        raise ValueError(f"algorithm.kl_coef is {config.kl_coef} but no reference log-probs were given")
    if entropy is None and config.entropy_coef != 0:
        raise ValueError(f"algorithm.entropy_coef is {config.entropy_coef} but no entropy was given")
    ratio = (logprobs - old_logprobs).clamp(-20.0, 20.0).exp()
    unclipped = -ratio * advantages
    clipped = -ratio.clamp(1.0 - config.clip_low, 1.0 + config.clip_high) * advantages
    surrogate = torch.maximum(unclipped, clipped)
    if correction is not None:
        surrogate = surrogate * correction.detach()

    terms = {"policy_loss": surrogate, "ratio": ratio, "clip_fraction": (clipped > unclipped).to(ratio.dtype)}
    total = surrogate
    if ref_logprobs is not None:
        terms["kl"] = token_kl(logprobs, ref_logprobs, config.kl_estimator)
        if config.kl_coef != 0:
            total = total + config.kl_coef * terms["kl"]
    if entropy is not None:
        terms["entropy"] = entropy
        if config.entropy_coef != 0:  # an entropy that is only reported should cost no backward pass
            total = total - config.entropy_coef * entropy
    loss = (weights * total).sum()
    metrics = {name: (weights * term.detach()).sum() for name, term in terms.items()}
    return loss, {"loss": loss.detach(), **metrics}


def sft_loss(logprobs: torch.Tensor, weights: torch.Tensor) -> Loss:
    """Weighted negative log-likelihood, -sum(weights * logprobs)."""
    loss = -(weights * logprobs).sum()
    return loss, {"loss": loss.detach()}
