"""The training loop, as every trainer rank runs it; rank 0 also drives generation and scoring.

``megatron-rl train`` starts one process per rank, ``python -m megatron_rl.train RUN_FOLDER``, with torchrun's
environment variables. All ranks run the same lines; what only rank 0 knows is shared with the others.
"""

import sys
from typing import Any

import torch.distributed as dist

from megatron_rl import processes
from megatron_rl.actor import parallel
from megatron_rl.actor.actor import Actor
from megatron_rl.actor.batch import Sequence
from megatron_rl.actor.schedule import learning_rate
from megatron_rl.actor.swap import Swap
from megatron_rl.algorithms.mismatch import mismatch
from megatron_rl.algorithms.objectives import Loss, policy_loss, sft_loss
from megatron_rl.config import Config
from megatron_rl.driver import Driver
from megatron_rl.position import Position, finish_warm_start, restore, save_if_due
from megatron_rl.tracking.run_folder import RunFolder


def train(run: RunFolder, config: Config) -> None:
    """Supervised warm start, then RL; a run that was stopped continues from its newest checkpoint."""
    parallel.initialize(config.actor, config.run.seed)
    driver = Driver(config, run) if dist.get_rank() == 0 else None  # first: its engines start meanwhile
    actor = Actor(run.hf_config(), config.actor, config.model.dtype, str(run.model_folder()))
    swap = Swap(actor, driver.engine if driver else None)
    at = restore(run, config, actor)
    if driver:
        driver.begin(at, swap.plan.hash)
    swap(at.version)
    if "before" not in at.evaluations:
        evaluate(driver, at, "before")

    if at.stage == "sft":
        for step in range(at.step, config.sft.steps):
            batch: list[Sequence] = share(driver and driver.imitate(step))
            lr = learning_rate(config.sft_optimizer, step, config.sft.steps)
            metrics = actor.update(actor.pack(batch), imitation, lr) | {"tokens": float(sum(map(len, batch)))}
            at.step = step + 1
            if driver:
                driver.record(at, metrics)
            save_if_due(run, config, actor, at, driver)
        at.version += 1
        swap(at.version)
        evaluate(driver, at, "after SFT")
        finish_warm_start(run, config, actor, swap, at, driver)

    for step in range(at.step, config.run.steps):
        rollout = driver.collect(step) if driver else None
        minibatches: list[list[Sequence]] = share(rollout and rollout.minibatches)
        at.step, at.version = step + 1, at.version + 1
        metrics = learn(actor, minibatches, config, step) | swap(at.version)
        if driver and rollout:
            driver.record(at, rollout.metrics | metrics, rollout.rows)
        if at.step == config.run.steps or (config.evaluation.every and at.step % config.evaluation.every == 0):
            evaluate(driver, at, "after RL" if at.step == config.run.steps else f"step {at.step}")
        save_if_due(run, config, actor, at, driver)

    if config.run.export and not run.export.exists():
        swap.export(run.export, run.model_folder())
    if driver:
        driver.finish(at)
    parallel.shutdown()


def learn(actor: Actor, minibatches: list[list[Sequence]], config: Config, step: int) -> dict[str, float]:
    """All optimiser steps on one rollout; returns their metrics, averaged (maxima: the largest)."""
    algorithm, temperature = config.algorithm, config.rollout.temperature
    packed = [actor.pack(sequences) for sequences in minibatches]
    rollout = [batch for batches in packed for batch in batches]
    updates = algorithm.epochs * len(packed)
    if len(packed) > 1:  # else the first update is on-policy: its own log-probs are the old ones
        actor.score(rollout, "old_logprobs", temperature)
    if algorithm.kl_coef:
        with actor.reference():
            actor.score(rollout, "ref_logprobs", temperature)

    def objective(logprobs: Any, entropy: Any, columns: dict[str, Any]) -> Loss:
        old = columns.setdefault("old_logprobs", logprobs.detach())
        loss, metrics = policy_loss(
            logprobs, old, columns["advantage"], columns["weight"], algorithm, columns.get("ref_logprobs"), entropy
        )
        return loss, metrics | mismatch(old, columns["rollout_logprobs"], columns["weight"])

    results = []
    for i in range(updates):
        lr = learning_rate(config.actor.optimizer, step * updates + i, config.run.steps * updates)
        results.append(actor.update(packed[i % len(packed)], objective, lr, temperature))
    return {
        name: max(r[name] for r in results) if name.startswith("max_") else sum(r[name] for r in results) / updates
        for name in results[0]
    }


def imitation(logprobs: Any, entropy: Any, columns: dict[str, Any]) -> Loss:
    """The warm start's objective."""
    return sft_loss(logprobs, columns["weight"])


def evaluate(driver: Driver | None, at: Position, label: str) -> None:
    """Held-out metrics of the weights in the engine; the other ranks wait at the next exchange."""
    result = share(driver and driver.evaluate(at, label))
    at.evaluations[label] = result


def share(value: Any) -> Any:
    """Rank 0's value on every rank."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def main() -> None:
    """One rank."""
    run = RunFolder(sys.argv[1])
    train(run, run.config())


if __name__ == "__main__":
    processes.run(main)
