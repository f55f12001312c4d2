"""REINFORCE++ (arXiv 2501.03262): no critic, and advantages that are comparable over the whole batch."""

import numpy as np

from megatron_rl.algorithms.algorithm import CreditBatch
from megatron_rl.algorithms.policy.gradient import PolicyGradient
from megatron_rl.algorithms.terms.advantages import centred, in_groups
from megatron_rl.algorithms.terms.returns import completion_rewards, rewards_to_go, token_rewards


class ReinforcePP(PolicyGradient):
    """The discounted sum of the rewards from a token on, whitened over all tokens of the batch."""

    def credit(self, batch: CreditBatch) -> np.ndarray:
        """As ``Algorithm.credit``."""
        for micro_batch in batch.micro_batches:
            rewards = token_rewards(micro_batch, batch.rewards, self.penalty(micro_batch))
            to_go = rewards_to_go(rewards, self.config.gamma)
            micro_batch.columns["advantage"] = micro_batch.own(to_go).float()
        batch.whiten("advantage", self.config.std)
        return batch.sample_means("advantage")


class ReinforcePPBaseline(PolicyGradient):
    """r - mean of a sample's group, whitened over all tokens of the batch."""

    grouped = True

    def credit(self, batch: CreditBatch) -> np.ndarray:
        """As ``Algorithm.credit``."""
        batch.per_sample("advantage", in_groups(batch, completion_rewards(batch, self.penalty), centred))
        batch.whiten("advantage", self.config.std)
        return batch.sample_means("advantage")
