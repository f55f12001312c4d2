"""What the policy-gradient algorithms have in common: what they need, and the loss of their columns."""

from abc import ABC, abstractmethod

import numpy as np
import torch

from megatron_rl.algorithms.algorithm import CreditBatch, Loss, TokenBatch
from megatron_rl.algorithms.config import AlgorithmConfig
from megatron_rl.algorithms.published import settled
from megatron_rl.algorithms.terms.objectives import policy_loss


class PolicyGradient(ABC):
    """An algorithm has to say only what a token gets credit for.

    ``config`` decides the surrogate and its bounds, KL and entropy.
    """

    grouped = False  # whether it compares the completions of one prompt

    def __init__(self, config: AlgorithmConfig) -> None:
        self.config = config = settled(config)
        needs = set()
        # With one mini-batch the first update is on-policy: its own log-probs are the old ones. With bypass they are
        # the engine's, and those of the first update on a mini-batch are near enough to measure the engine by. A KL in
        # the reward has to be known before.
        if not config.bypass and (config.minibatches > 1 or config.kl_in == "reward"):
            needs.add("old")
        if config.uses_reference:
            needs.add("reference")
        self.needs = frozenset(needs)

    @abstractmethod
    def credit(self, batch: CreditBatch) -> np.ndarray:
        """As ``Algorithm.credit``."""

    def loss(self, batch: TokenBatch, logprobs: torch.Tensor, entropy: torch.Tensor) -> Loss:
        """``objectives.policy_loss`` of the batch's columns."""
        columns = batch.columns
        return policy_loss(
            logprobs,
            self.old_logprobs(batch),
            columns["advantage"],
            columns["weight"],
            self.config,
            columns.get("ref_logprobs"),
            entropy,
            columns.get("correction"),
            kl_coef=columns.get("kl_coef"),
            sequence_sum=batch.sequence_sum,
            share=columns.get("share"),
        )

    def old_logprobs(self, batch: TokenBatch) -> torch.Tensor:
        """[n], of the policy that the ratio is measured to."""
        return batch.columns["rollout_logprobs" if self.config.bypass else "old_logprobs"]

    def penalty(self, batch: TokenBatch) -> torch.Tensor:
        """What each token's reward is lowered by, [n]: kl_coef x KL, estimator k1; 0 with the KL in the loss."""
        columns = batch.columns
        if self.config.kl_in != "reward":
            return torch.zeros_like(columns["weight"])
        return columns.get("kl_coef", self.config.kl_coef) * (self.old_logprobs(batch) - columns["ref_logprobs"])
