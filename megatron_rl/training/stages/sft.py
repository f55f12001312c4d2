"""Supervised fine-tuning on the task's own targets, or on conversations of its own."""

import numpy as np
import torch

from megatron_rl.actor.micro_batch import MicroBatch
from megatron_rl.actor.rows import TrainingRow
from megatron_rl.actor.schedule import learning_rate
from megatron_rl.algorithms.algorithm import Loss
from megatron_rl.algorithms.terms.objectives import sft_loss
from megatron_rl.config import Config
from megatron_rl.data.sets.conversations import Conversation, Part
from megatron_rl.data.task import Example
from megatron_rl.swap.trainer import Alone, Swap
from megatron_rl.tracking.run_folder import RunFolder
from megatron_rl.training.batch import Batch, Step, tokens
from megatron_rl.training.models import Models
from megatron_rl.training.progress import Progress, leave_policy
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
        texts, weights = [], []
        for example in prompts.take(config.batch_size):
            parts = [(encode(text), learned) for text, learned in _parts(example)]
            weight = np.concatenate([np.full(len(ids), 1.0 if on else config.prompt_weight) for ids, on in parts])
            weight[0] = 0.0  # nothing predicts the first token
            texts.append([token for ids, _ in parts for token in ids])
            weights.append(weight)
        total = sum(w.sum() for w in weights)
        rows = [
            TrainingRow(np.array(t, dtype=np.int64), {"weight": (w / total).astype(np.float32)}, sample=number)
            for number, (t, w) in enumerate(zip(texts, weights, strict=True))
        ]
        return Step([rows], {"tokens": float(tokens(rows))}, prompts.state())

    def learn(self, models: Models, batch: Batch, step: int) -> tuple[dict[str, float], list[float]]:
        """As ``Stage.learn``."""
        [mine] = batch.minibatches
        lr = learning_rate(self.config.sft_optimizer, step, self.steps)
        return models.policy.update(models.policy.build(mine, batch.columns), _imitation, lr), []

    def leave(self, models: Models, swap: Swap | Alone, at: Progress) -> None:
        """As ``Stage.leave``: the warm start, to which what follows is measured."""
        leave_policy(self.run, self.config, models, swap, at)


def _parts(example: Example | Conversation) -> tuple[Part, ...]:
    return example.parts if isinstance(example, Conversation) else ((example.prompt, False), (example.target, True))


def _imitation(logprobs: torch.Tensor, entropy: torch.Tensor, batch: MicroBatch) -> Loss:
    return sft_loss(logprobs, batch.columns["weight"])
