"""PPO (arXiv 1707.06347) with generalised advantage estimation (arXiv 1506.02438) and a critic."""

import numpy as np

from megatron_rl.algorithms.algorithm import CreditBatch
from megatron_rl.algorithms.config import AlgorithmConfig
from megatron_rl.algorithms.policy.gradient import PolicyGradient
from megatron_rl.algorithms.terms.returns import generalised_advantages, token_rewards


class PPO(PolicyGradient):
    """A token is worth what came of it beyond what the critic expected; columns ``advantage`` and ``returns``."""

    def __init__(self, config: AlgorithmConfig) -> None:
        super().__init__(config)
        self.needs |= {"value"}

    def credit(self, batch: CreditBatch) -> np.ndarray:
        """As ``Algorithm.credit``; advantages are whitened over all tokens of the batch, returns are not."""
        for micro_batch in batch.micro_batches:
            columns = micro_batch.columns
            rewards = token_rewards(micro_batch, batch.rewards, self.penalty(micro_batch))
            values = micro_batch.whole(columns["values"].double())
            advantages = generalised_advantages(rewards, values, self.config.gamma, self.config.gae_lambda)
            columns["advantage"] = micro_batch.own(advantages).float()
            columns["returns"] = micro_batch.own(advantages + values).float()
        batch.whiten("advantage", self.config.std)
        return batch.sample_means("advantage")
