"""Importance sampling from the engine's policy: what its tokens weigh in the actor's policy gradient.

The engine samples from a policy that is nearly the actor's: other kernels, another precision, perhaps older weights.
d = actor - engine log-prob of a token says how far off it is, measured before the first update on the rollout.
"""

from collections.abc import Callable

import torch

from megatron_rl.algorithms.algorithm import TokenBatch
from megatron_rl.algorithms.config import AlgorithmConfig

SequenceSum = Callable[[torch.Tensor], torch.Tensor]
"""[tokens] -> [tokens], same dtype: for every token the sum over the trained tokens of its whole sequence."""


def importance_weights(
    log_ratios: torch.Tensor, sequence_sum: SequenceSum, config: AlgorithmConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """The factor of every token's surrogate, and 1.0 where a bound changed it, else 0.0; both [tokens] float32.

    log_ratios: d [tokens], nats, detached. With r = exp(d) at level token and exp(sum of d) at level sequence:
    truncated: clamp(r, low, high) (TIS, verl's rollout_is). masked: r inside [low, high], 0 outside (IcePop; MIS
    at level sequence). Level geometric masks sequences whose exp(mean of d) is outside and weighs the tokens of the
    others by exp(d) (OpenRLHF's seq-mask-tis), with d clamped to +-20 as verl does.

    Sums are in float64, so that the layout of the batch does not show. NaNs propagate.
    """
    d = log_ratios.double()
    if config.correction_level == "sequence":
        statistic = sequence_sum(d).exp()
    elif config.correction_level == "geometric":
        statistic = (sequence_sum(d) / sequence_sum(torch.ones_like(d))).exp()
    else:
        statistic = d.exp()
    bounded = statistic.clamp(config.correction_low, config.correction_high)
    outside = bounded != statistic
    if config.correction == "masked":
        kept = d.clamp(-20.0, 20.0).exp() if config.correction_level == "geometric" else statistic
        bounded = kept.masked_fill(outside & ~statistic.isnan(), 0.0)
    return bounded.float(), outside.float()


def correct(batch: TokenBatch, config: AlgorithmConfig) -> None:
    """Write the columns ``correction`` and ``corrected`` of a micro-batch whose ``old_logprobs`` are known."""
    log_ratios = batch.columns["old_logprobs"] - batch.columns["rollout_logprobs"]
    batch.columns["correction"], batch.columns["corrected"] = importance_weights(log_ratios, batch.sequence_sum, config)


def correction_metrics(
    weights: torch.Tensor, corrections: torch.Tensor, corrected: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Sums over tokens, as in ``objectives``: mean factor, mean square, and fraction of tokens that a bound changed."""
    return {
        "correction_weight": (weights * corrections).sum(),
        "correction_square": (weights * corrections.square()).sum(),
        "correction_fraction": (weights * corrected).sum(),
    }


def effective_samples(mean: float, square: float) -> float:
    """Kish's effective sample size as a fraction of the samples: E[w]^2 / E[w^2]; 1 when all weigh the same.

    0 when every token is masked.
    """
    return mean**2 / square if square else 0.0
