"""RLOO (arXiv 2402.14740): the baseline of a completion is the mean reward of the prompt's others."""

import numpy as np

from megatron_rl.algorithms.algorithm import CreditBatch
from megatron_rl.algorithms.policy.gradient import PolicyGradient
from megatron_rl.algorithms.terms.advantages import in_groups, leave_one_out
from megatron_rl.algorithms.terms.returns import completion_rewards


class RLOO(PolicyGradient):
    """r - mean of the others of a sample's group, for each of its tokens."""

    grouped = True

    def credit(self, batch: CreditBatch) -> np.ndarray:
        """As ``Algorithm.credit``."""
        advantages = in_groups(batch, completion_rewards(batch, self.penalty), leave_one_out)
        batch.per_sample("advantage", advantages)
        return advantages
