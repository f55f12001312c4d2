"""Reward models: the run's model with a scalar head, which is to give the chosen reply of a pair the higher number.

A reply's reward is read at its last token, which is the end token. A run that trains one has no other stage, and its
model takes the policy's place: in checkpoints, and in the folder that is exported.
"""

from typing import cast

import numpy as np
import torch

from megatron_rl.actor.micro_batch import MicroBatch
from megatron_rl.actor.rows import TrainingRow
from megatron_rl.actor.schedule import learning_rate
from megatron_rl.algorithms.algorithm import Loss
from megatron_rl.algorithms.pairs.bradley_terry import bradley_terry_loss, reward_metrics
from megatron_rl.config import Config
from megatron_rl.data.sets.pairs import Pair
from megatron_rl.swap.trainer import Alone, Swap
from megatron_rl.tracking.run_folder import RunFolder
from megatron_rl.training.batch import Batch, Step, tokens
from megatron_rl.training.models import Models
from megatron_rl.training.progress import Progress, leave_policy
from megatron_rl.training.stages.stage import Source


class RewardModel:
    """One optimiser step on each batch of pairs; a pair's two rows lie in one micro-batch."""

    name = "reward_model"
    samples = False

    def __init__(self, config: Config, run: RunFolder) -> None:
        self.config, self.run = config, run
        self.steps = config.reward_model.steps

    def enter(self, models: Models, at: Progress) -> None:
        """As ``Stage.enter``."""
        models.policy.new_optimizer(self.config.reward_model_optimizer)

    def batch(self, source: Source, at: Progress) -> Step:
        """Rows 2 k and 2 k + 1 are the chosen and the rejected reply of pair k."""
        cursor, encode = source.prompts[self.name], source.encode
        pairs = cast(list[Pair], cursor.take(self.config.reward_model.batch_size))
        rows = [
            reward_row(encode(pair.prompt) + encode(pair.prefix), encode(reply), 2 * number + place, number)
            for number, pair in enumerate(pairs)
            for place, reply in enumerate((pair.chosen, pair.rejected))
        ]
        return Step([rows], {"tokens": float(tokens(rows) - len(rows))}, cursor.state())

    def learn(self, models: Models, batch: Batch, step: int) -> tuple[dict[str, float], list[float]]:
        """As ``Stage.learn``."""
        policy, [mine] = models.policy, batch.minibatches
        lr = learning_rate(self.config.reward_model_optimizer, step, self.steps)
        return policy.update(policy.build(mine, batch.columns), self._objective, lr), []

    def leave(self, models: Models, swap: Swap | Alone, at: Progress) -> None:
        """As ``Stage.leave``."""
        leave_policy(self.run, self.config, models, swap, at)

    def _objective(self, values: torch.Tensor, batch: MicroBatch) -> Loss:
        options = self.config.reward_model
        return reward_objective(values, batch, options.batch_size, options.margin)


def reward_row(before: tuple[int, ...], reply: tuple[int, ...], sample: int, pair: int) -> TrainingRow:
    """One reply to what was ``before``, with the number of its sample and of its pair.

    A position's number stands beside the token that comes after it, so one more token follows; it is never read.
    """
    content = np.array([*before, *reply, 0], dtype=np.int64)
    weight = np.zeros(len(content), dtype=np.float32)
    weight[-1] = 1.0
    return TrainingRow(content, {"weight": weight}, prompt=len(before), sample=sample, unit=pair)


def reward_objective(values: torch.Tensor, batch: MicroBatch, pairs: int, margin: float) -> Loss:
    """Mean Bradley-Terry loss of ``pairs`` pairs: this micro-batch's share; values [rows on this rank], float32.

    All context-parallel ranks come to the same loss, of which each has the gradient of its own positions, so a metric
    counts as a share on each.
    """
    rewards = batch.whole(values.double()).sum(1)  # a row has one of them
    order = batch.samples.argsort()
    chosen, rejected = rewards[order[::2]], rewards[order[1::2]]
    loss = bradley_terry_loss(chosen, rejected, margin).sum() / pairs
    metrics = reward_metrics(chosen.detach(), rejected.detach())
    share = batch.share / pairs
    return loss, {"loss": loss.detach() * batch.share} | {name: value * share for name, value in metrics.items()}
