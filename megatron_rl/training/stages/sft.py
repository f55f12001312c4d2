"""Supervised fine-tuning on the task's own targets: the warm start that RL begins from."""

import shutil

import numpy as np
import torch

from megatron_rl.actor import groups
from megatron_rl.actor.micro_batch import MicroBatch
from megatron_rl.actor.rows import TrainingRow
from megatron_rl.actor.schedule import learning_rate
from megatron_rl.algorithms.algorithm import Loss
from megatron_rl.algorithms.terms.objectives import sft_loss
from megatron_rl.config import Config
from megatron_rl.swap.trainer import Swap
from megatron_rl.tracking.run_folder import RunFolder
from megatron_rl.training.batch import Batch, Step, tokens
from megatron_rl.training.models import Models
from megatron_rl.training.progress import Progress
from megatron_rl.training.stages.stage import Source


class SFT:
    """One optimiser step on each batch of examples."""

    name = "sft"
    samples = False

    def __init__(self, config: Config, run: RunFolder) -> None:
        self.config, self.run = config, run
        self.steps = config.sft.steps

    def enter(self, models: Models, at: Progress) -> None:
        """As ``Stage.enter``."""
        models.policy.new_optimizer(self.config.sft_optimizer)

    def batch(self, source: Source, at: Progress) -> Step:
        """Prompt tokens weigh sft.prompt_weight, target tokens 1; weights add up to 1."""
        prompts, encode, config = source.prompts[self.name], source.encode, self.config.sft
        pairs = [(encode(e.prompt), encode(e.target)) for e in prompts.take(config.batch_size)]
        weights = [
            np.concatenate([[0.0], np.full(len(p) - 1, config.prompt_weight), np.ones(len(t))]) for p, t in pairs
        ]
        total = sum(w.sum() for w in weights)
        rows = [
            TrainingRow(np.array(p + t, dtype=np.int64), {"weight": (w / total).astype(np.float32)}, sample=number)
            for number, ((p, t), w) in enumerate(zip(pairs, weights, strict=True))
        ]
        return Step([rows], {"tokens": float(tokens(rows))}, prompts.state())

    def learn(self, models: Models, batch: Batch, step: int) -> tuple[dict[str, float], list[float]]:
        """As ``Stage.learn``."""
        [mine] = batch.minibatches
        lr = learning_rate(self.config.sft_optimizer, step, self.steps)
        return models.policy.update(models.policy.build(mine, batch.columns), _imitation, lr), []

    def leave(self, models: Models, swap: Swap, at: Progress) -> None:
        """Keep the warm start as a Hugging Face folder: the policy that RL measures its KL to."""
        if groups.first():
            shutil.rmtree(self.run.warm_start, ignore_errors=True)  # of an attempt that ended before its checkpoint
        swap.export(self.run.warm_start, self.run.model_folder())
        at.set_reference(self.run, self.run.warm_start)
        models.holds(self.run.warm_start)


def _imitation(logprobs: torch.Tensor, entropy: torch.Tensor, batch: MicroBatch) -> Loss:
    return sft_loss(logprobs, batch.columns["weight"])
