"""What is minimised of a token's ratio and advantage: one function each, all with one signature.

(log-probs, old log-probs, advantages, settled config, sum over a token's sequence) -> (surrogate, ratio, whether a
bound changed the token), all [n]. The ratio is exp(new - old), with the exponent clamped to +-20 as in verl's
core_algos.
"""

from collections.abc import Callable

import torch

from megatron_rl.algorithms.config import AlgorithmConfig
from megatron_rl.algorithms.terms.correction import SequenceSum

Surrogate = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def clip(
    logprobs: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, config: AlgorithmConfig, _: SequenceSum | None
) -> Surrogate:
    """PPO: max(-r A, -clip(r, 1 - clip_low, 1 + clip_high) A) (arXiv 1707.06347, eq. 7; two bounds: 2503.14476).

    With ``dual_clip`` c the loss of a token with a negative advantage is at most -c A (arXiv 1912.09729, eq. 5).
    """
    ratio = _ratio(logprobs, old)
    surrogate, clipped = _pessimistic(ratio, advantages, config)
    if config.dual_clip:
        most = -config.dual_clip * advantages
        bounded = (advantages < 0) & (surrogate > most)
        surrogate, clipped = torch.where(bounded, most, surrogate), clipped | bounded
    return surrogate, ratio, clipped


def gspo(
    logprobs: torch.Tensor,
    old: torch.Tensor,
    advantages: torch.Tensor,
    config: AlgorithmConfig,
    sequence_sum: SequenceSum | None,
) -> Surrogate:
    """One ratio for a sequence, s = exp(mean of log r), clipped as in PPO (arXiv 2507.18071, eq. 5 to 7).

    Its gradient goes through every token's own log-prob, s grad(log p_t) (eq. 17): with seq-mean-token-mean that is the
    sequence's, and no gradient has to cross context-parallel ranks.
    """
    if sequence_sum is None:
        raise ValueError("algorithm.surrogate is gspo but nothing says which tokens are of one sequence")
    d = (logprobs - old).detach().double()
    mean = sequence_sum(d) / sequence_sum(torch.ones_like(d))
    ratio = (logprobs - logprobs.detach() + mean.to(logprobs.dtype).clamp(max=10.0)).exp()
    surrogate, clipped = _pessimistic(ratio, advantages, config)
    return surrogate, ratio, clipped


def cispo(
    logprobs: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, config: AlgorithmConfig, _: SequenceSum | None
) -> Surrogate:
    """-clip(r, 1 - clip_low, 1 + clip_high) A log p with a constant ratio: no token loses its gradient (2506.13585)."""
    ratio = _ratio(logprobs.detach(), old)
    bounded = ratio.clamp(1.0 - config.clip_low, 1.0 + config.clip_high)  # type: ignore[operator]  # settled
    return -bounded * advantages * logprobs, ratio, bounded != ratio


def policy_gradient(
    logprobs: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, config: AlgorithmConfig, _: SequenceSum | None
) -> Surrogate:
    """-A log p (REINFORCE): right where the policy is the one that sampled."""
    ratio = _ratio(logprobs.detach(), old)
    return -advantages * logprobs, ratio, torch.zeros_like(ratio, dtype=torch.bool)


SURROGATES: dict[str, Callable[..., Surrogate]] = {
    "clip": clip,
    "gspo": gspo,
    "cispo": cispo,
    "policy_gradient": policy_gradient,
}


def _ratio(logprobs: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    return (logprobs - old).clamp(-20.0, 20.0).exp()


def _pessimistic(
    ratio: torch.Tensor, advantages: torch.Tensor, config: AlgorithmConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """The worse of the plain and the clipped surrogate, and where that is the clipped one."""
    unclipped = -ratio * advantages
    bounded = ratio.clamp(1.0 - config.clip_low, 1.0 + config.clip_high)  # type: ignore[operator]  # settled
    clipped = -bounded * advantages
    return torch.maximum(unclipped, clipped), clipped > unclipped
