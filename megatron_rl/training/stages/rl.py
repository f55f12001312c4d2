"""Reinforcement learning: rollouts of the present policy, credit for what they were worth, updates, a swap."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_rl.actor import accelerator
from megatron_rl.actor.micro_batch import MicroBatch
from megatron_rl.actor.schedule import learning_rate
from megatron_rl.actor.trainer import Actor
from megatron_rl.algorithms.algorithm import Algorithm, CreditBatch, Loss
from megatron_rl.algorithms.mismatch import mismatch
from megatron_rl.algorithms.registry import make_algorithm
from megatron_rl.algorithms.terms.correction import correct, correction_metrics, effective_samples
from megatron_rl.config import Config
from megatron_rl.rollout.sound import record, unsound
from megatron_rl.swap.trainer import Alone, Swap
from megatron_rl.tracking.clock import Clock
from megatron_rl.tracking.run_folder import RunFolder
from megatron_rl.training.batch import Batch, Step
from megatron_rl.training.models import Models, Role
from megatron_rl.training.progress import Progress, export_policy
from megatron_rl.training.rows import Rows, credited
from megatron_rl.training.stages.critic import Critic
from megatron_rl.training.stages.stage import Source

NOTHING = dict.fromkeys(
    ("loss", "grad_norm", "learning_rate", "engine_kl_k3", "p99_logprob_gap", "max_logprob_gap"), 0.0
)
"""What the loop asks of a step's metrics, of one in which nothing was learned."""


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
            moves = self.config.algorithm.moves_reference
            models.freeze(Role("reference", folder, trained=False), at.reference["hash"], moves=moves)
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
        dropped = {number: reason for number, r in enumerate(rollouts) if (reason := unsound(r))}
        numbers[list(dropped)] = len(groups) + np.arange(len(dropped))  # nobody is compared with them
        ends = np.cumsum([0, *(len(group) for group in groups)]).tolist()
        cuts = [(ends[i], ends[i + size]) for i in range(0, len(groups), size)]
        rows = Rows(self.config, rollouts, dropped)
        minibatch_rows = [rows.made(first, last) for first, last in cuts]
        rewards, terms = credited(rollouts, self.config.rewards.parts_at, dropped)
        metrics = drawn.metrics | {"dropped_samples": float(len(dropped))}
        step = Step(minibatch_rows, metrics, drawn.cursor, rollouts, rewards, numbers, terms)
        self._say(source, at, step, dropped)
        return step

    def learn(self, models: Models, batch: Batch, step: int) -> tuple[dict[str, float], list[float]]:
        """As ``Stage.learn``; metrics are averaged over the updates (maxima: the largest)."""
        policy, algorithm, temperature = models.policy, self.algorithm, self.config.rollout.temperature
        critic, updates = self.critic, self.updates
        frozen = critic is not None and critic.learns_alone(step)
        packed = [policy.build(mine, batch.columns) for mine in batch.minibatches]
        everything = [micro_batch for batches in packed for micro_batch in batches]
        clock = Clock()
        with clock.span("score"):
            if "old" in algorithm.needs or frozen:
                policy.score(everything, "old_logprobs", temperature)
            if "teacher" in algorithm.needs:
                models.teacher.score(everything, "teacher_logprobs", temperature)
            if critic is not None:
                models.critic.score(everything, "values")
            accelerator.synchronize()
        if "reference" in algorithm.needs:
            with clock.span("reference"), models.frozen("reference") as reference:
                reference.score(everything, "ref_logprobs", temperature)
                accelerator.synchronize()
        ends = everything if policy.last_stage else []
        credit = algorithm.credit(CreditBatch(ends, batch.rewards, batch.groups, batch.terms, policy.total))

        learned = [batches for batches, some in zip(packed, batch.learnable, strict=True) if some]
        if not learned:
            models.keep_up(self.config.algorithm, step + 1)
            return NOTHING | clock.spans() | {"skipped_updates": float(updates)}, credit.tolist()
        results, skipped = [], updates * (len(packed) - len(learned)) // len(packed)
        for i in range(updates):
            number, batches = step * updates + i, packed[i % len(packed)]
            if not batch.learnable[i % len(packed)]:  # of nothing, an optimiser's moments alone would move the weights
                continue
            if critic is not None:
                critic.update(models, batches, number)
            if not frozen:
                lr = learning_rate(self.config.actor.optimizer, number, self.steps * updates)
                results.append(policy.update(batches, self._objective, lr, temperature))
        models.keep_up(self.config.algorithm, step + 1)
        metrics = _over(results, skipped) | (critic.metrics() if critic is not None else {})
        return metrics | clock.spans() | measure(policy, learned), credit.tolist()

    def leave(self, models: Models, swap: Swap | Alone, at: Progress) -> None:
        """As ``Stage.leave``."""
        if self.config.run.export:
            export_policy(self.run, swap, at)

    def _say(self, source: Source, at: Progress, step: Step, dropped: dict[int, str]) -> None:
        """Keep what is dropped, and tell the user of it, and of a step of which nothing is left."""
        said = f"step {at.step + 1}: "
        if dropped:
            records = [record(step.rollouts[number], reason) for number, reason in dropped.items()]
            file = self.run.keep_dropped(f"{at.stage}-{at.step + 1:06d}", records)
            said += f"{len(dropped)} completions left out, the first as {records[0]['reason']}; they are in {file}. "
        if not any(step.learnable()):
            said += "Nothing can be learned from any completion; the step changes nothing."
        if dropped or not any(step.learnable()):
            source.warn(said.strip())

    def _objective(self, logprobs: torch.Tensor, entropy: torch.Tensor, batch: MicroBatch) -> Loss:
        columns = batch.columns
        if "old_logprobs" not in columns:  # this update is on-policy: its own log-probs are the old ones
            columns["old_logprobs"] = logprobs.detach()
        if self.config.algorithm.correction != "none" and "correction" not in columns:
            correct(batch, self.config.algorithm)
        return self.algorithm.loss(batch, logprobs, entropy)


def _over(results: list[dict[str, float]], skipped: int) -> dict[str, float]:
    """The updates' metrics as one: means, the largest of maxima, the count of skipped ones; none of no updates."""
    metrics = {
        name: max(r[name] for r in results) if name.startswith("max_") else sum(r[name] for r in results) / len(results)
        for name in (results[0] if results else ())
    }
    if results:
        metrics["skipped_updates"] = metrics["skipped_updates"] * len(results) + skipped
    return metrics


def measure(actor: Actor, rollout: list[list[MicroBatch]]) -> dict[str, float]:
    """The engine's mismatch, and what its correction did, over all tokens of mini-batches that were learned from."""
    shares: list[dict[str, Any]] = []
    minibatches = len(rollout)
    for batch in [micro_batch for batches in rollout for micro_batch in batches] if actor.last_stage else ():
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
