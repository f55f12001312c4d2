"""One rank of the learning tests: all optimiser steps on one rollout, as the training loop takes them.

argv: a JSON list of jobs {"name", "model", "actor": options, "algorithm": options}, the rollout as torch.save wrote it
(mini-batches of {"tokens", "prompt", columns}), and where to write this rank's results.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_rl.actor import accelerator, groups
from megatron_rl.actor.config import ActorConfig, OptimizerConfig
from megatron_rl.actor.rows import Sequence
from megatron_rl.actor.trainer import Actor
from megatron_rl.algorithms.config import AlgorithmConfig
from megatron_rl.config import Config, RunConfig
from megatron_rl.rollout.config import RolloutConfig
from megatron_rl.training.learn import learn

SETTINGS = OptimizerConfig(lr=1e-3, weight_decay=0.0, clip_grad=0.0, warmup_steps=0, decay="constant")
TEMPERATURE = 0.7


def cut(rollout: list[list[dict]], minibatches: int) -> list[list[dict]]:
    """The rollout's two mini-batches, or one of both; the weights of each add up to 1."""
    if minibatches == len(rollout):
        return rollout
    return [
        [s | {"columns": s["columns"] | {"weight": s["columns"]["weight"] / 2}} for batch in rollout for s in batch]
    ]


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
    minibatches = [
        [Sequence(s["tokens"], s["columns"], prompt=s["prompt"]) for s in batch]
        for batch in cut(rollout, config.algorithm.minibatches)
    ]
    metrics = learn(actor, minibatches, config, step=0)
    (out / f"{job['name']}-{dist.get_rank()}.json").write_text(json.dumps(metrics))
    parallel_state.destroy_model_parallel()
    dist.barrier()


if __name__ == "__main__":
    accelerator.adapt()
    rollout = torch.load(sys.argv[2], weights_only=False)
    for job in json.loads(Path(sys.argv[1]).read_text()):
        run(job, rollout, Path(sys.argv[3]))
    dist.destroy_process_group()
