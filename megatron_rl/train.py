"""The training loop, as every trainer rank runs it; rank 0 also drives generation and scoring.

``megatron-rl train`` starts one process per rank, ``python -m megatron_rl.train RUN_FOLDER``, with torchrun's
environment variables. All ranks run the same lines; what only rank 0 knows is shared with the others.
"""

import sys

import torch.distributed as dist

from megatron_rl.actor import groups
from megatron_rl.actor.groups import share
from megatron_rl.actor.rows import Sequence
from megatron_rl.actor.schedule import learning_rate
from megatron_rl.actor.trainer import Actor
from megatron_rl.algorithms.mismatch import alarm
from megatron_rl.config import Config
from megatron_rl.errors import InputError
from megatron_rl.swap.trainer import Swap
from megatron_rl.system import processes
from megatron_rl.tracking.run_folder import RunFolder
from megatron_rl.training.driver import Driver
from megatron_rl.training.learn import imitation, learn
from megatron_rl.training.progress import Position, finish_warm_start, restore, save_if_due


def train(run: RunFolder, config: Config) -> None:
    """Supervised warm start, then RL; a run that was stopped continues from its newest checkpoint."""
    groups.initialize(config.actor, config.run.seed)
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

    if config.rollout.true_on_policy:
        actor.sum_as_engine()
    for step in range(at.step, config.run.steps):
        rollout = driver.take(at) if driver else None
        minibatches: list[list[Sequence]] = share(rollout and rollout.minibatches)
        at.step, at.version = step + 1, at.version + 1
        metrics = learn(actor, minibatches, config, step)
        if driver:
            driver.before_swap()
        metrics |= swap(at.version)
        if driver and rollout:
            driver.record(at, rollout.metrics | metrics, rollout.rows)
        watch(driver, at, config, metrics)
        if at.step == config.run.steps or (config.evaluation.every and at.step % config.evaluation.every == 0):
            evaluate(driver, at, "after RL" if at.step == config.run.steps else f"step {at.step}")
        save_if_due(run, config, actor, at, driver)

    if config.run.export and not run.export.exists():
        swap.export(run.export, run.model_folder())
    if driver:
        driver.finish(at)
    swap.close()
    groups.shutdown()


def watch(driver: Driver | None, at: Position, config: Config, metrics: dict[str, float]) -> None:
    """Warn, or end the run on every rank, when the engine and the actor disagree."""
    if not (wrong := alarm(metrics, config.algorithm)):
        return
    if config.algorithm.mismatch_action == "stop":
        raise InputError(f"Step {at.step} stopped the run (algorithm.mismatch_action=stop): {wrong}")
    if driver:
        print(f"warning: step {at.step}: {wrong}", flush=True)


def evaluate(driver: Driver | None, at: Position, label: str) -> None:
    """Held-out metrics of the weights in the engine; the other ranks wait at the next exchange."""
    result = share(driver and driver.evaluate(at, label))
    at.evaluations[label] = result


def main() -> None:
    """One rank."""
    run = RunFolder(sys.argv[1])
    train(run, run.config())


if __name__ == "__main__":
    processes.run(main)
