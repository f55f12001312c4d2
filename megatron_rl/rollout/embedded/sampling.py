"""Drawing tokens: one uniform number per (seed, position), turned into a token by the inverse CDF.

The numbers come from a counter, not from a generator with state: a completion drawn with a seed does not
depend on the rows it shares a batch with, on their order, or on rows that have ended.
"""

import torch

from megatron_rl.rollout.protocol import Sampling

# SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014), as int64
_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MULTIPLIER_2 = 0x94D049BB133111EB - (1 << 64)
_NUCLEUS_CANDIDATES = 1024  # tokens looked at before the whole vocabulary is sorted for top-p


def uniforms(seeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Uniform numbers in [0, 1): multiples of 2**-52.

    ``seeds`` and ``positions`` are int64 [n]; returns float64 [n]. Number ``p`` of seed ``s`` is output
    ``p`` of a SplitMix64 generator whose state is the mixed ``s``, so that neighbouring seeds share nothing.
    """
    bits = _mix(_mix(seeds) + (positions + 1) * _GAMMA)
    return _shift_right(bits, 12).double() * 2.0**-52


def draw(
    logits: torch.Tensor, seeds: torch.Tensor, positions: torch.Tensor, sampling: Sampling
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token per row and its natural log-probability.

    ``logits`` [n, vocabulary] of any float dtype; ``seeds`` and ``positions`` int64 [n]. Returns tokens
    int64 [n] and log-probabilities float32 [n] under the temperature-scaled distribution before top-k and
    top-p (temperature 0: the unscaled one, and the token is the most likely).
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if sampling.temperature == 0:
        tokens = logits.argmax(-1, keepdim=True)
        return tokens[:, 0], (logits.gather(1, tokens) - logits.logsumexp(-1, keepdim=True))[:, 0].float()
    if sampling.temperature != 1:
        logits = logits / sampling.temperature
    shifted = logits - logits.amax(-1, keepdim=True)
    cumulative = shifted.exp().cumsum(-1, dtype=torch.float64)
    normaliser = cumulative[:, -1:].log()
    if sampling.top_k or sampling.top_p < 1:
        cutoff = _cutoff(shifted, normaliser, sampling.top_k, sampling.top_p)
        cumulative = shifted.masked_fill(shifted < cutoff, -torch.inf).exp().cumsum(-1, dtype=torch.float64)
    # the first token whose cumulative probability passes u; u * total < total, so there is one (unless logits are NaN)
    thresholds = uniforms(seeds, positions)[:, None] * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, thresholds, right=True).clamp_(max=logits.shape[1] - 1)
    return tokens[:, 0], (shifted.gather(1, tokens) - normaliser)[:, 0].float()


def _cutoff(shifted: torch.Tensor, normaliser: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """The smallest logit that is kept, [n, 1]; equal logits are kept or dropped together.

    Top-k comes first and top-p then counts the probability of what is left, as in transformers and vLLM.
    """
    vocabulary = shifted.shape[1]
    k = min(top_k or vocabulary, vocabulary)
    if top_p >= 1:
        return shifted.topk(k).values[:, -1:]
    if not top_k and vocabulary > _NUCLEUS_CANDIDATES:
        values = shifted.topk(_NUCLEUS_CANDIDATES).values
        before, total = _probability_before(values, normaliser)
        if bool((total >= top_p).all()):
            return _last_kept(values, before, top_p)
    values = shifted.topk(k).values
    before, total = _probability_before(values, normaliser)
    return _last_kept(values, before, top_p * total if top_k else top_p)


def _probability_before(values: torch.Tensor, normaliser: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For sorted ``values`` [n, k]: the probability of all earlier ones [n, k], and of all [n, 1] (float64)."""
    probabilities = (values - normaliser).exp()
    cumulative = probabilities.cumsum(-1)
    return cumulative - probabilities, cumulative[:, -1:]


def _last_kept(values: torch.Tensor, before: torch.Tensor, mass: torch.Tensor | float) -> torch.Tensor:
    kept = (before < mass).sum(-1, keepdim=True).clamp_(min=1)
    return values.gather(1, kept - 1)


def _mix(x: torch.Tensor) -> torch.Tensor:
    x = (x ^ _shift_right(x, 30)) * _MULTIPLIER_1
    x = (x ^ _shift_right(x, 27)) * _MULTIPLIER_2
    return x ^ _shift_right(x, 31)


def _shift_right(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical shift (int64's own shift keeps the sign)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
