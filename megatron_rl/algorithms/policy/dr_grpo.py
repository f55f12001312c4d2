"""Dr. GRPO (arXiv 2503.20783): GRPO without the two divisions that favour easy questions and long wrong answers."""

import numpy as np

from megatron_rl.algorithms.algorithm import CreditBatch
from megatron_rl.algorithms.policy.gradient import PolicyGradient
from megatron_rl.algorithms.terms.advantages import centred, in_groups
from megatron_rl.algorithms.terms.returns import completion_rewards


class DrGRPO(PolicyGradient):
    """r - mean of a sample's group, for each of its tokens; the other division is ``algorithm.aggregation``'s."""

    grouped = True

    def credit(self, batch: CreditBatch) -> np.ndarray:
        """As ``Algorithm.credit``."""
        advantages = in_groups(batch, completion_rewards(batch, self.penalty), centred)
        batch.per_sample("advantage", advantages)
        return advantages
