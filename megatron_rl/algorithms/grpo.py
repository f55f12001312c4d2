"""GRPO (arXiv 2402.03300): rewards compared within the completions of one prompt, PPO's clipping, KL in the loss."""

import numpy as np
import torch

from megatron_rl.algorithms.advantages import group_advantages
from megatron_rl.algorithms.algorithm import CreditBatch, Loss, TokenBatch
from megatron_rl.algorithms.config import AlgorithmConfig
from megatron_rl.algorithms.objectives import policy_loss


class GRPO:
    """``config`` decides the standard deviation, the bounds of the ratio, KL and entropy."""

    def __init__(self, config: AlgorithmConfig) -> None:
        self.config = config
        needs = set()
        # With one mini-batch the first update is on-policy: its own log-probs are the old ones. With bypass they are
        # the engine's, and those of the first update on a mini-batch are near enough to measure the engine by.
        if config.minibatches > 1 and not config.bypass:
            needs.add("old")
        if config.kl_coef:
            needs.add("reference")
        self.needs = frozenset(needs)

    def credit(self, batch: CreditBatch) -> np.ndarray:
        """(r - mean) / (std + eps) of a sample's group, for each of its tokens."""
        advantages = np.zeros(len(batch.rewards))
        for group in batch.by_group():
            advantages[group] = group_advantages(batch.rewards[group][None], self.config.std, self.config.std_eps)[0]
        batch.per_sample("advantage", advantages)
        return advantages

    def loss(self, batch: TokenBatch, logprobs: torch.Tensor, entropy: torch.Tensor) -> Loss:
        """``objectives.policy_loss`` of the batch's columns."""
        columns = batch.columns
        return policy_loss(
            logprobs,
            columns["rollout_logprobs"] if self.config.bypass else columns["old_logprobs"],
            columns["advantage"],
            columns["weight"],
            self.config,
            columns.get("ref_logprobs"),
            entropy,
            columns.get("correction"),
        )
