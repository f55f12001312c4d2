"""The critic's part of a step of RL: values before credit is given, and updates towards what came of them."""

from collections.abc import Sequence
from math import isfinite
from pathlib import Path

import torch

from megatron_rl.actor.config import CriticConfig
from megatron_rl.actor.micro_batch import MicroBatch
from megatron_rl.actor.schedule import learning_rate
from megatron_rl.algorithms.algorithm import Loss
from megatron_rl.algorithms.terms.value import explained_variance, value_loss
from megatron_rl.training.models import Models, Role

_RENAMED = ("grad_norm", "learning_rate", "skipped_updates")  # of every update, beside those of the policy


class Critic:
    """Updates of the value model by ``critic``'s options; ``total``: those of the whole run."""

    def __init__(self, config: CriticConfig, total: int) -> None:
        self.config, self.total = config, total
        self._done: list[dict[str, float]] = []

    def enter(self, models: Models, policy: Path) -> None:
        """Build it from its own folder, or from that of the policy which RL begins with."""
        folder = Path(self.config.path) if self.config.path else policy
        models.begin(Role("critic", folder, head="scalar"), self.config.optimizer)

    def learns_alone(self, step: int) -> bool:
        """Whether the policy stays as it is in this step (from 0)."""
        return step < self.config.warmup_steps

    def update(self, models: Models, batches: Sequence[MicroBatch], number: int) -> None:
        """One optimiser step, number ``number`` of all, on a mini-batch with the columns values and returns."""
        lr = learning_rate(self.config.optimizer, number, self.total)
        self._done.append(models.critic.update(list(batches), self._objective, lr))

    def metrics(self) -> dict[str, float]:
        """Means over the updates since the last time."""
        done, self._done = self._done, []
        found = {name: sum(update[name] for update in done) / len(done) for name in done[0]}
        found["skipped_updates"] *= len(done)
        found |= {f"value_{name}": found.pop(name) for name in _RENAMED}
        return explained_variance(found) if isfinite(found["value_loss"]) else {"value_loss": found["value_loss"]}

    def _objective(self, values: torch.Tensor, batch: MicroBatch) -> Loss:
        columns = batch.columns
        weights = columns.get("share", columns["weight"])  # they add up to 1
        return value_loss(values, columns["values"], columns["returns"], weights, self.config.clip)
