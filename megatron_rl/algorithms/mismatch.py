"""How far the log-probs of the engine that sampled are from the actor's, for the same tokens."""

from collections.abc import Callable, Mapping
from math import ceil

import torch

from megatron_rl.algorithms.config import AlgorithmConfig
from megatron_rl.algorithms.terms.kl import token_kl


def mismatch(actor: torch.Tensor, engine: torch.Tensor, weights: torch.Tensor) -> dict[str, torch.Tensor]:
    """Compare log-probs [tokens] of tokens that the engine sampled; metrics as in ``objectives``.

    max_logprob_gap: largest |difference|, nats (a maximum: combine with max). p99_logprob_gap: |difference| of every
    token (combine with ``percentile``). logprob_gap: weighted mean of it. engine_kl_k1, engine_kl_k3: the estimators
    of KL(engine || actor) (k3 is bounded by 10 a token). NaNs propagate.
    """
    gap = (engine - actor).abs().detach()
    return {
        "max_logprob_gap": gap.max() if gap.numel() else gap.new_zeros(()),
        "p99_logprob_gap": gap,
        "logprob_gap": (weights * gap).sum().detach(),
        "engine_kl_k1": (weights * token_kl(engine, actor, "k1")).sum().detach(),
        "engine_kl_k3": (weights * token_kl(engine, actor, "k3")).sum().detach(),
    }


def percentile(values: torch.Tensor, percent: float, total: Callable[[torch.Tensor], torch.Tensor]) -> float:
    """The smallest of the values of all ranks that at least ``percent`` % of them do not exceed (nearest rank); exact.

    values: [n], not negative; this rank's. total: adds up an int64 tensor over the ranks. 0 where there are no values;
    NaNs count as the largest. The bits of such float32 numbers sort as integers, so two histograms find the value
    that sorting all ranks' values would: one of the upper halves, one of the lower halves of those that share it.
    """
    bits = values.detach().float().abs().view(torch.int32)
    upper, lower = bits >> 16, bits & 0xFFFF
    counts = total(torch.bincount(upper, minlength=1 << 15))
    if not (n := int(counts.sum())):
        return 0.0
    rank = min(max(ceil(percent * n / 100), 1), n)  # counted from 1
    high, before = _bin_of(counts, rank)
    low, _ = _bin_of(total(torch.bincount(lower[upper == high], minlength=1 << 16)), rank - before)
    return torch.tensor(high << 16 | low, dtype=torch.int32).view(torch.float32).item()


def _bin_of(counts: torch.Tensor, rank: int) -> tuple[int, int]:
    """The bin that holds the rank-th smallest value (from 1), and how many values lie in the bins before."""
    ends = counts.cumsum(0)
    at = int((ends < rank).sum())
    return at, int(ends[at] - counts[at])


def alarm(metrics: Mapping[str, float], config: AlgorithmConfig) -> str | None:
    """What is wrong when the step's KL between engine and actor exceeds the limit; None while it does not."""
    value, limit = metrics["engine_kl_k3"], config.mismatch_limit
    if limit == 0 or value <= limit:  # a NaN is above every limit
        return None
    return (
        f"the engine's log-probs differ from the actor's by engine_kl_k3={value:.3g} nats a token (p99 "
        f"{metrics['p99_logprob_gap']:.3g}, largest {metrics['max_logprob_gap']:.3g}), and algorithm.mismatch_limit "
        f"is {limit:g}. The weights in the engine are not those that were trained or are much older, the engine "
        "computes in another precision, or it sampled with options that its log-probs do not show. Compare them, or "
        "raise the limit (0: no limit)."
    )
