"""One rank of the learning tests: all optimiser steps on one rollout, as the training loop takes them.

argv: a JSON list of jobs {"name", "model", "actor": options, "algorithm": options}, the rollout as torch.save wrote it
(mini-batches of {"tokens", "prompt", columns}), and where to write this rank's results.
"""

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from megatron_rl.actor import accelerator, groups
from megatron_rl.actor.config import ActorConfig, OptimizerConfig
from megatron_rl.actor.rows import TrainingRow
from megatron_rl.actor.trainer import Actor
from megatron_rl.algorithms.algorithm import CreditBatch
from megatron_rl.algorithms.config import AlgorithmConfig
from megatron_rl.algorithms.policy.grpo import GRPO
from megatron_rl.config import Config, RunConfig
from megatron_rl.rollout.config import RolloutConfig
from megatron_rl.tracking.run_folder import RunFolder
from megatron_rl.training.batch import Batch
from megatron_rl.training.models import Models
from megatron_rl.training.stages.rl import RL

SETTINGS = OptimizerConfig(lr=1e-3, weight_decay=0.0, clip_grad=0.0, warmup_steps=0, decay="constant")
TEMPERATURE = 0.7


def cut(rollout: list[list[dict]], minibatches: int) -> list[list[dict]]:
    """The rollout's two mini-batches, or one of both; the weights of each add up to 1."""
    if minibatches == len(rollout):
        return rollout
    return [
        [s | {"columns": s["columns"] | {"weight": s["columns"]["weight"] / 2}} for batch in rollout for s in batch]
    ]


class Given(GRPO):
    """GRPO's loss with advantages of somebody else."""

    def __init__(self, config: AlgorithmConfig, advantages: list[float]) -> None:
        super().__init__(config)
        self.advantages = np.array(advantages)

    def credit(self, batch: CreditBatch) -> np.ndarray:
        batch.per_sample("advantage", self.advantages)
        return self.advantages


def run(job: dict, rollout: list[list[dict]], out: Path) -> None:
    from megatron.core import parallel_state

    config = Config(
        run=RunConfig(steps=1),
        rollout=RolloutConfig(temperature=TEMPERATURE),
        algorithm=AlgorithmConfig(**job["algorithm"]),
        actor=ActorConfig(**job["actor"], optimizer=SETTINGS),
    )
    groups.initialize(config.actor, seed=0)
    folder = Path(job["model"])
    actor = Actor(json.loads((folder / "config.json").read_text()), config.actor, "float32", str(folder))
    actor.new_optimizer(SETTINGS)
    models = object.__new__(Models)  # a policy alone: there is no run
    models.policy = actor
    numbers, advantages, minibatches = itertools.count(), [], []
    for batch in cut(rollout, config.algorithm.minibatches):
        rows = []
        for s in batch:
            columns = {name: values for name, values in s["columns"].items() if name != "advantage"}
            rows.append(TrainingRow(s["tokens"], columns, prompt=s["prompt"], sample=next(numbers)))
            advantages.append(float(s["columns"]["advantage"][-1]))
        minibatches.append(actor.split(rows)[parallel_state.get_data_parallel_rank()])
    stage = RL(config, RunFolder(out), Given(config.algorithm, advantages))
    rewards = np.zeros(len(advantages))
    metrics, _ = stage.learn(models, Batch(minibatches, ["weight", "rollout_logprobs"], rewards, rewards), step=0)
    (out / f"{job['name']}-{dist.get_rank()}.json").write_text(json.dumps(metrics))
    parallel_state.destroy_model_parallel()
    dist.barrier()


if __name__ == "__main__":
    accelerator.adapt()
    rollout = torch.load(sys.argv[2], weights_only=False)
    for job in json.loads(Path(sys.argv[1]).read_text()):
        run(job, rollout, Path(sys.argv[3]))
    dist.destroy_process_group()
