"""One rank of the learning tests: all optimiser steps on one rollout, as the training loop takes them.

argv: a JSON list of jobs {"layout", "actor": options, "cases": {name: options of the algorithm}, "rollout": as
torch.save wrote it (``Given``), "models": the folders of the policy and of the reference}, and where to write this
rank's results.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.distributed as dist

from megatron_rl.actor import accelerator, groups
from megatron_rl.actor.config import ActorConfig, OptimizerConfig
from megatron_rl.actor.trainer import Actor
from megatron_rl.algorithms.config import AlgorithmConfig
from megatron_rl.algorithms.published import settled
from megatron_rl.config import Config, RunConfig
from megatron_rl.data.task import Example
from megatron_rl.rewards.config import RewardsConfig
from megatron_rl.rewards.workers.pool import Scored
from megatron_rl.rollout.config import RolloutConfig
from megatron_rl.rollout.rollout import Rollout
from megatron_rl.tracking.run_folder import RunFolder
from megatron_rl.training.batch import Drawn, scatter
from megatron_rl.training.models import Models, Role
from megatron_rl.training.progress import Progress
from megatron_rl.training.stages.rl import RL

SETTINGS = OptimizerConfig(lr=3e-4, weight_decay=0.0, clip_grad=0.0, warmup_steps=0, decay="constant")
TEMPERATURE = 0.7
TERMS = {"right": 1.0, "format": 0.5}
LONGEST = 32  # rollout.max_new_tokens


@dataclass
class Given:
    """One completion and what is known of it."""

    tokens: np.ndarray
    prompt: int
    engine: np.ndarray  # log-probs of the completion's tokens
    scores: dict[str, float]
    source: str
    truncated: bool
    token_rewards: np.ndarray | None = None  # of the completion's tokens
    hint: int = 0  # so many tokens between prompt and completion were told

    @property
    def reward(self) -> float:
        return sum(TERMS[term] * score for term, score in self.scores.items())

    @property
    def start(self) -> int:
        """Where the completion begins."""
        return self.prompt + self.hint

    def rollout(self) -> Rollout:
        fill = np.zeros(self.start, np.float32)
        given, place = self.token_rewards, np.arange(len(self.tokens))
        return Rollout(
            example=Example("one", "", "", data_source=self.source),
            tokens=self.tokens,
            drawn=place >= self.start,
            logprobs=np.concatenate([fill, self.engine]).astype(np.float32),
            prompt=self.prompt,
            text="",
            finish="length" if self.truncated else "stop",
            versions=((0, len(self.tokens) - self.start),),
            hinted=(place >= self.prompt) & (place < self.start) if self.hint else None,
            rewards=None if given is None else np.concatenate([fill, given]).astype(np.float32),
            scored=Scored(self.reward, {f"{term}/score": score for term, score in self.scores.items()}),
        )


def run(job: dict, out: Path) -> None:
    from megatron.core import parallel_state

    model, reference = map(Path, job["models"])
    given = torch.load(job["rollout"], weights_only=False)
    options = ActorConfig(**job["actor"], optimizer=SETTINGS)
    groups.initialize(options, seed=0)
    actor = Actor(json.loads((model / "config.json").read_text()), options, "float32", str(model))
    models = object.__new__(Models)  # a policy alone: there is no run
    models.policy, models.roles, models.beside = actor, {}, {}
    models.changed()
    models.freeze(Role("reference", reference, trained=False))
    for name, algorithm in job["cases"].items():
        config = Config(
            run=RunConfig(steps=1),
            rollout=RolloutConfig(temperature=TEMPERATURE, max_new_tokens=LONGEST),
            rewards=RewardsConfig(terms=TERMS),
            algorithm=settled(AlgorithmConfig(**algorithm)),
            actor=options,
        )
        actor.load(str(model))
        actor.new_optimizer(SETTINGS)
        stage = RL(config, RunFolder(out))
        drawn = Drawn([[g.rollout() for g in group] for group in given], {}, {})
        source = SimpleNamespace(take=lambda at, drawn=drawn: drawn)
        batch = scatter(stage.batch(source, Progress("rl")) if groups.first() else None, actor)
        metrics, credit = stage.learn(models, batch, step=0)
        (out / f"{job['layout']}-{name}-{dist.get_rank()}.json").write_text(json.dumps({"credit": credit} | metrics))
    parallel_state.destroy_model_parallel()
    dist.barrier()


if __name__ == "__main__":
    accelerator.adapt()
    for job in json.loads(Path(sys.argv[1]).read_text()):
        run(job, Path(sys.argv[2]))
    dist.destroy_process_group()
