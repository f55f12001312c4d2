"""On-policy distillation (GKD, arXiv 2306.13649; thinkingmachines.ai/blog/on-policy-distillation): the policy draws,
and a teacher says of every token how probable it would have been."""

import numpy as np
import torch

from megatron_rl.algorithms.algorithm import CreditBatch, Loss, TokenBatch
from megatron_rl.algorithms.config import AlgorithmConfig
from megatron_rl.algorithms.policy.gradient import PolicyGradient


class Distillation(PolicyGradient):
    """A token's credit is -(log pi - log pi_teacher), of which the mean is minus the reverse KL a token; rewards are
    recorded, and not learned from."""

    def __init__(self, config: AlgorithmConfig) -> None:
        super().__init__(config)
        self.needs = self.needs | {"teacher"} | (set() if config.bypass else {"old"})

    def credit(self, batch: CreditBatch) -> np.ndarray:
        """As ``Algorithm.credit``."""
        for part in batch.micro_batches:
            part.columns["advantage"] = part.columns["teacher_logprobs"] - self.old_logprobs(part) - self.penalty(part)
        return batch.sample_means("advantage")

    def loss(self, batch: TokenBatch, logprobs: torch.Tensor, entropy: torch.Tensor) -> Loss:
        """As ``PolicyGradient.loss``; ``teacher_kl`` estimates the reverse KL before the step's updates."""
        loss, metrics = super().loss(batch, logprobs, entropy)
        columns = batch.columns
        share = columns.get("share", columns["weight"])
        apart = self.old_logprobs(batch) - columns["teacher_logprobs"]
        return loss, metrics | {"teacher_kl": (share * apart).sum()}
