"""Rewards of single tokens, and what comes of a token: sums to the end of its sequence, and GAE.

[s, longest] are whole sequences side by side, zeros behind each (``TokenBatch.whole``), in float64.
"""

from collections.abc import Callable

import numpy as np
import torch

from megatron_rl.algorithms.algorithm import CreditBatch, TokenBatch

Penalty = Callable[[TokenBatch], torch.Tensor]
"""What each token's reward is lowered by, [n]."""


def token_rewards(batch: TokenBatch, rewards: np.ndarray, penalty: torch.Tensor) -> torch.Tensor:
    """The reward of every token [s, longest]: the completion's at its last, less the token's penalty [n].

    rewards: float64 [samples]. Collective over context-parallel ranks.
    """
    of_tokens = batch.whole(_of_tokens(batch, penalty))
    trained = batch.totals > 0  # a sequence without trained tokens has no last one
    table = torch.from_numpy(rewards).to(of_tokens.device)[batch.samples]
    of_tokens[trained, batch.totals[trained] - 1] += table[trained]
    return of_tokens


def rewards_to_go(rewards: torch.Tensor, gamma: float) -> torch.Tensor:
    """G_t = r_t + gamma G_{t+1}; [s, longest]."""
    return _discounted(rewards, gamma)


def generalised_advantages(
    rewards: torch.Tensor, values: torch.Tensor, gamma: float, gae_lambda: float
) -> torch.Tensor:
    """A_t = d_t + gamma lambda A_{t+1} with d_t = r_t + gamma V_{t+1} - V_t (arXiv 1506.02438, eq. 16).

    rewards, values [s, longest], both 0 behind a sequence's end, where its value is 0. Not whitened.
    """
    after = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    return _discounted(rewards + gamma * after - values, gamma * gae_lambda)


def _discounted(terms: torch.Tensor, factor: float) -> torch.Tensor:
    """x_t + factor (x_{t+1} + factor (…)); [s, longest]."""
    if factor == 1.0:
        return terms.flip(1).cumsum(1).flip(1)
    result, running = torch.empty_like(terms), terms.new_zeros(len(terms))
    for t in reversed(range(terms.shape[1])):
        running = terms[:, t] + factor * running
        result[:, t] = running
    return result


def completion_rewards(batch: CreditBatch, penalty: Penalty) -> np.ndarray:
    """Each sample's reward with those of its trained tokens, less their penalties; float64 [samples]. Collective.

    As verl's use_kl_in_reward for algorithms that compare whole completions.
    """
    sums = torch.zeros(len(batch.rewards), dtype=torch.float64)
    for micro_batch in batch.micro_batches:
        numbers = micro_batch.samples.repeat_interleave(micro_batch.lengths).cpu()
        sums.index_add_(0, numbers, _of_tokens(micro_batch, penalty(micro_batch)).cpu())
    return batch.rewards + batch.total(sums).numpy()


def _of_tokens(batch: TokenBatch, penalty: torch.Tensor) -> torch.Tensor:
    """What tokens get beside the completion's reward; float64 [n]."""
    given = batch.columns.get("token_reward")
    return -penalty.double() if given is None else given.double() - penalty.double()
