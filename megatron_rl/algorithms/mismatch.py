"""How far the log-probs of the engine that sampled are from the actor's, for the same tokens."""

import torch

from megatron_rl.algorithms.kl import token_kl


def mismatch(actor: torch.Tensor, engine: torch.Tensor, weights: torch.Tensor) -> dict[str, torch.Tensor]:
    """Compare log-probs [tokens] of tokens that the engine sampled; metrics as in ``objectives``.

    max_logprob_gap: largest |difference|, nats (a maximum: combine with max). logprob_gap: weighted mean of it.
    engine_kl_k1, engine_kl_k3: the estimators of KL(engine || actor) (k3 is bounded by 10 a token). NaNs propagate.
    """
    gap = (engine - actor).abs()
    largest = gap.max() if gap.numel() else gap.new_zeros(())
    return {
        "max_logprob_gap": largest.detach(),
        "logprob_gap": (weights * gap).sum().detach(),
        "engine_kl_k1": (weights * token_kl(engine, actor, "k1")).sum().detach(),
        "engine_kl_k3": (weights * token_kl(engine, actor, "k3")).sum().detach(),
    }
