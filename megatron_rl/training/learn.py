"""What the policy learns from one batch: the objectives of both stages, bound to the columns that the driver fills."""

from typing import Any

from megatron_rl.actor.micro_batch import MicroBatch
from megatron_rl.actor.rows import Sequence
from megatron_rl.actor.schedule import learning_rate
from megatron_rl.actor.trainer import Actor
from megatron_rl.algorithms.correction import correction_metrics, effective_samples, importance_weights
from megatron_rl.algorithms.mismatch import mismatch
from megatron_rl.algorithms.objectives import Loss, policy_loss, sft_loss
from megatron_rl.config import Config


def learn(actor: Actor, minibatches: list[list[Sequence]], config: Config, step: int) -> dict[str, float]:
    """All optimiser steps on one rollout; returns their metrics, averaged (maxima: the largest)."""
    algorithm, temperature = config.algorithm, config.rollout.temperature
    packed = [actor.pack(sequences) for sequences in minibatches]
    rollout = [batch for batches in packed for batch in batches]
    updates = algorithm.epochs * len(packed)
    # With one mini-batch the first update is on-policy: its own log-probs are the old ones. With bypass they are the
    # engine's, and those of the first update on a mini-batch are near enough to measure the engine by.
    if len(packed) > 1 and not algorithm.bypass:
        actor.score(rollout, "actor_logprobs", temperature)
    if algorithm.kl_coef:
        with actor.reference():
            actor.score(rollout, "ref_logprobs", temperature)

    def objective(logprobs: Any, entropy: Any, batch: MicroBatch) -> Loss:
        columns = batch.columns
        ours, engine = columns.setdefault("actor_logprobs", logprobs.detach()), columns["rollout_logprobs"]
        if algorithm.correction != "none" and "correction" not in columns:
            columns["correction"], columns["corrected"] = importance_weights(
                ours - engine, lambda values: actor.sequence_sum(batch, values), algorithm
            )
        return policy_loss(
            logprobs,
            engine if algorithm.bypass else ours,
            columns["advantage"],
            columns["weight"],
            algorithm,
            columns.get("ref_logprobs"),
            entropy,
            columns.get("correction"),
        )

    results = []
    for i in range(updates):
        lr = learning_rate(config.actor.optimizer, step * updates + i, config.run.steps * updates)
        results.append(actor.update(packed[i % len(packed)], objective, lr, temperature))
    metrics = {
        name: max(r[name] for r in results) if name.startswith("max_") else sum(r[name] for r in results) / updates
        for name in results[0]
    }
    return metrics | measure(actor, rollout, len(packed))


def measure(actor: Actor, rollout: list[MicroBatch], minibatches: int) -> dict[str, float]:
    """The engine's mismatch, and what its correction did, over all tokens of a rollout that has been learned from."""
    shares = []
    for batch in rollout if actor.last_stage else ():
        columns = batch.columns
        weights = columns["weight"] / minibatches  # those of one mini-batch add up to 1
        shares.append(mismatch(columns["actor_logprobs"], columns["rollout_logprobs"], weights))
        if "correction" in columns:
            shares[-1] |= correction_metrics(weights, columns["correction"], columns["corrected"])
    metrics = actor.reduce(shares)
    if "correction_square" in metrics:
        square = metrics.pop("correction_square")
        metrics["correction_ess"] = effective_samples(metrics["correction_weight"], square)
    return metrics


def imitation(logprobs: Any, entropy: Any, batch: MicroBatch) -> Loss:
    """The warm start's objective."""
    return sft_loss(logprobs, batch.columns["weight"])
