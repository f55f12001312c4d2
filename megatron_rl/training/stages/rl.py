"""Reinforcement learning: rollouts of the present policy, credit for what they were worth, updates, a swap."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_rl.actor.micro_batch import MicroBatch
from megatron_rl.actor.schedule import learning_rate
from megatron_rl.actor.trainer import Actor
from megatron_rl.algorithms.algorithm import Algorithm, CreditBatch, Loss
from megatron_rl.algorithms.mismatch import mismatch
from megatron_rl.algorithms.registry import make_algorithm
from megatron_rl.algorithms.terms.correction import correct, correction_metrics, effective_samples
from megatron_rl.config import Config
from megatron_rl.swap.trainer import Alone, Swap
from megatron_rl.tracking.run_folder import RunFolder
from megatron_rl.training.batch import Batch, Step
from megatron_rl.training.models import Models, Role
from megatron_rl.training.progress import Progress, export_policy
from megatron_rl.training.rows import Rows, credited
from megatron_rl.training.stages.critic import Critic
from megatron_rl.training.stages.stage import Source


class RL:
    """``algorithm`` decides what is learned from a rollout; the stage has it all computed and summed up."""

    name = "rl"
    samples = True

    def __init__(self, config: Config, run: RunFolder, algorithm: Algorithm | None = None) -> None:
        self.config, self.run = config, run
        self.steps = config.run.steps
        self.algorithm = algorithm or make_algorithm(config.algorithm)
        self.updates = config.algorithm.epochs * config.algorithm.minibatches  # of a step
        learns_values = "value" in self.algorithm.needs
        self.critic = Critic(config.critic, self.steps * self.updates) if learns_values else None

    def enter(self, models: Models, at: Progress) -> None:
        """As ``Stage.enter``."""
        if "reference" in self.algorithm.needs:
            if not at.reference:  # the run begins here
                at.set_reference(self.run, self.run.model_folder())
            folder = at.reference_folder(self.run)
            assert folder is not None
            models.freeze(Role("reference", folder, trained=False), at.reference["hash"])
        if "teacher" in self.algorithm.needs:
            teacher = Path(self.config.algorithm.teacher)
            models.teach(Role("teacher", teacher, trained=False), at.expect(self.run, "teacher", teacher))
        models.policy.new_optimizer(self.config.actor.optimizer)
        if self.critic is not None:
            self.critic.enter(models, at.reference_folder(self.run) or self.run.model_folder())
        if self.config.rollout.true_on_policy:
            models.policy.sum_as_engine()

    def batch(self, source: Source, at: Progress) -> Step:
        """A rollout, cut into mini-batches of whole groups; the token weights of each add up to 1, or as aggregated."""
        drawn = source.take(at)
        groups, minibatches = drawn.groups, self.config.algorithm.minibatches
        size = len(groups) // minibatches
        numbers = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
        rollouts = [rollout for group in groups for rollout in group]
        ends = np.cumsum([0, *(len(group) for group in groups)]).tolist()
        cuts = [(ends[i], ends[i + size]) for i in range(0, len(groups), size)]
        rows = Rows(self.config, rollouts)
        minibatch_rows = [rows.made(first, last) for first, last in cuts]
        rewards, terms = credited(rollouts, self.config.rewards.terms)
        return Step(minibatch_rows, drawn.metrics, drawn.cursor, rollouts, rewards, numbers, terms)

    def learn(self, models: Models, batch: Batch, step: int) -> tuple[dict[str, float], list[float]]:
        """As ``Stage.learn``; metrics are averaged over the updates (maxima: the largest)."""
        policy, algorithm, temperature = models.policy, self.algorithm, self.config.rollout.temperature
        critic, updates = self.critic, self.updates
        frozen = critic is not None and critic.learns_alone(step)
        packed = [policy.build(mine, batch.columns) for mine in batch.minibatches]
        everything = [micro_batch for batches in packed for micro_batch in batches]
        if "old" in algorithm.needs or frozen:
            policy.score(everything, "old_logprobs", temperature)
        if "reference" in algorithm.needs:
            with models.frozen("reference") as reference:
                reference.score(everything, "ref_logprobs", temperature)
        if critic is not None:
            models.critic.score(everything, "values")
        if "teacher" in algorithm.needs:
            models.teacher.score(everything, "teacher_logprobs", temperature)
        ends = everything if policy.last_stage else []
        credit = algorithm.credit(CreditBatch(ends, batch.rewards, batch.groups, batch.terms, policy.total))

        results = []
        for i in range(updates):
            number, batches = step * updates + i, packed[i % len(packed)]
            if critic is not None:
                critic.update(models, batches, number)
            if not frozen:
                lr = learning_rate(self.config.actor.optimizer, number, self.steps * updates)
                results.append(policy.update(batches, self._objective, lr, temperature))
        metrics = _over(results) | (critic.metrics() if critic is not None else {})
        return metrics | measure(policy, everything, len(packed)), credit.tolist()

    def leave(self, models: Models, swap: Swap | Alone, at: Progress) -> None:
        """As ``Stage.leave``."""
        if self.config.run.export:
            export_policy(self.run, swap, at)

    def _objective(self, logprobs: torch.Tensor, entropy: torch.Tensor, batch: MicroBatch) -> Loss:
        columns = batch.columns
        if "old_logprobs" not in columns:  # this update is on-policy: its own log-probs are the old ones
            columns["old_logprobs"] = logprobs.detach()
        if self.config.algorithm.correction != "none" and "correction" not in columns:
            correct(batch, self.config.algorithm)
        return self.algorithm.loss(batch, logprobs, entropy)


def _over(results: list[dict[str, float]]) -> dict[str, float]:
    """The updates' metrics as one: means, the largest of maxima, the count of skipped ones; none of no updates."""
    metrics = {
        name: max(r[name] for r in results) if name.startswith("max_") else sum(r[name] for r in results) / len(results)
        for name in (results[0] if results else ())
    }
    if results:
        metrics["skipped_updates"] *= len(results)
    return metrics


def measure(actor: Actor, rollout: list[MicroBatch], minibatches: int) -> dict[str, float]:
    """The engine's mismatch, and what its correction did, over all tokens of a rollout that has been learned from."""
    shares: list[dict[str, Any]] = []
    for batch in rollout if actor.last_stage else ():
        columns = batch.columns
        weights = columns.get("share", columns["weight"]) / minibatches  # those of one mini-batch add up to 1
        shares.append(mismatch(columns["old_logprobs"], columns["rollout_logprobs"], weights))
        if "correction" in columns:
            shares[-1] |= correction_metrics(weights, columns["correction"], columns["corrected"])
    metrics = actor.reduce(shares)
    if "correction_square" in metrics:
        square = metrics.pop("correction_square")
        metrics["correction_ess"] = effective_samples(metrics["correction_weight"], square)
    return metrics
