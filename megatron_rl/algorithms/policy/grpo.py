"""GRPO (arXiv 2402.03300): rewards compared within the completions of one prompt; GDPO (arXiv 2601.05242)."""

import numpy as np

from megatron_rl.algorithms.algorithm import CreditBatch
from megatron_rl.algorithms.policy.gradient import PolicyGradient
from megatron_rl.algorithms.terms.advantages import group_advantages, in_groups
from megatron_rl.algorithms.terms.returns import completion_rewards


class GRPO(PolicyGradient):
    """(r - mean) / (std + eps) of a sample's group, for each of its tokens."""

    grouped = True

    def credit(self, batch: CreditBatch) -> np.ndarray:
        """As ``Algorithm.credit``. With reward_normalization=each (GDPO) the scores of every term are compared alone.

        Their weighted sum is whitened over the batch's tokens; what is rewarded or penalised token by token is added
        before.
        """
        rewards = completion_rewards(batch, self.penalty)
        if self.config.reward_normalization == "sum":
            advantages = in_groups(batch, rewards, self._normalised)
            batch.per_sample("advantage", advantages)
            return advantages
        parts = [weights * in_groups(batch, scores, self._normalised) for scores, weights in batch.terms.values()]
        batch.per_sample("advantage", np.sum(parts, axis=0) + (rewards - batch.rewards))
        batch.whiten("advantage", self.config.std)
        return batch.sample_means("advantage")

    def _normalised(self, rewards: np.ndarray) -> np.ndarray:
        return group_advantages(rewards[None], self.config.std, self.config.std_eps)[0]
