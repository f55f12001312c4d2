"""Objectives: flat token tensors to a scalar loss and its metrics.

Every tensor is [tokens] float32 and holds one micro-batch. ``weights`` come from ``aggregation``: a token that is not
trained has weight 0. The loss and every metric are weighted sums, so that adding them up over micro-batches and
data-parallel ranks gives the mini-batch's value.
"""

import torch

from megatron_rl.algorithms.algorithm import Loss
from megatron_rl.algorithms.config import AlgorithmConfig
from megatron_rl.algorithms.terms.correction import SequenceSum
from megatron_rl.algorithms.terms.kl import token_kl
from megatron_rl.algorithms.terms.surrogates import SURROGATES


def policy_loss(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    weights: torch.Tensor,
    config: AlgorithmConfig,
    ref_logprobs: torch.Tensor | None = None,
    entropy: torch.Tensor | None = None,
    correction: torch.Tensor | None = None,
    *,
    kl_coef: torch.Tensor | None = None,
    sequence_sum: SequenceSum | None = None,
    share: torch.Tensor | None = None,
) -> Loss:
    """A surrogate of ``surrogates`` with KL and entropy terms.

    loss = sum(weights * (c * surrogate + kl_coef * KL - entropy_coef * entropy)); the KL is no term of the loss when it
    is in the reward.

    config: settled (``published.settled``). old_logprobs: of the policy that sampled (that being trained, detached,
    before its first update: ratio 1). correction: c, the factor of the surrogate alone (``importance_weights``; a
    constant); 1 when it is not given. ref_logprobs: needed when there is a KL. kl_coef: each token's own, in place of
    config's. entropy: needed when entropy_coef is not 0, else only reported. sequence_sum: needed by surrogate gspo.
    share: what each token counts for in the metrics, where that is not its weight (sums over sequences are no means).
    Metrics (detached scalars): loss, policy_loss, ratio, clip_fraction; kl and entropy where their inputs are given.
    """
    if ref_logprobs is None and config.uses_reference:
        raise ValueError(f"algorithm.kl_coef is {config.kl_coef} but no reference log-probs were given")
    if entropy is None and config.entropy_coef != 0:
        raise ValueError(f"algorithm.entropy_coef is {config.entropy_coef} but no entropy was given")
    surrogate, ratio, clipped = SURROGATES[config.surrogate](logprobs, old_logprobs, advantages, config, sequence_sum)
    if correction is not None:
        surrogate = surrogate * correction.detach()

    terms = {"ratio": ratio, "clip_fraction": clipped.to(ratio.dtype)}
    total = surrogate
    if ref_logprobs is not None:
        terms["kl"] = token_kl(logprobs, ref_logprobs, config.kl_estimator)
        if config.uses_reference and config.kl_in == "loss":
            total = total + (config.kl_coef if kl_coef is None else kl_coef) * terms["kl"]
    if entropy is not None:
        terms["entropy"] = entropy
        if config.entropy_coef != 0:  # an entropy that is only reported should cost no backward pass
            total = total - config.entropy_coef * entropy
    loss = (weights * total).sum()
    metrics = {"loss": loss.detach(), "policy_loss": (weights * surrogate.detach()).sum()}
    share = weights if share is None else share
    return loss, metrics | {name: (share * term.detach()).sum() for name, term in terms.items()}


def sft_loss(logprobs: torch.Tensor, weights: torch.Tensor) -> Loss:
    """Weighted negative log-likelihood, -sum(weights * logprobs)."""
    loss = -(weights * logprobs).sum()
    return loss, {"loss": loss.detach()}
