"""What the ranks learn from in one step: made on rank 0, of which every rank gets its own rows."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from megatron_rl.actor import groups
from megatron_rl.actor.packing import spared
from megatron_rl.actor.rows import TrainingRow
from megatron_rl.actor.trainer import Actor
from megatron_rl.algorithms.algorithm import Term
from megatron_rl.rollout.dynamic.refill import Drawn as Drawn  # what a stage makes its steps of
from megatron_rl.rollout.rollout import Rollout

_NONE: np.ndarray = np.zeros(0)


@dataclass
class Step:
    """One step's batch as a stage makes it, whole, on rank 0."""

    minibatches: list[list[TrainingRow]]  # one optimiser step each, per epoch; alike in their columns
    metrics: dict[str, float]
    cursor: dict[str, int]  # where the stage's prompts stand behind it
    rollouts: list[Rollout] = field(default_factory=list)  # whose numbers are those of rewards; none: imitation
    rewards: np.ndarray = field(default_factory=lambda: _NONE)  # float64 [samples]
    groups: np.ndarray = field(default_factory=lambda: _NONE)  # int64 [samples]
    terms: dict[str, Term] = field(default_factory=dict)  # what the rewards are the weighted sum of
    spared: list[list[int]] = field(default_factory=list)  # of each mini-batch: ``packing.spared``

    def learnable(self) -> list[bool]:
        """Of each mini-batch, whether any of its tokens has a weight."""
        return [any(row.columns["weight"].any() for row in rows) for rows in self.minibatches]


@dataclass
class Batch:
    """One rank's part of a step."""

    minibatches: list[list[list[TrainingRow]]]  # [mini-batch][micro-batch][row]
    columns: list[str]  # of the rows
    rewards: np.ndarray  # float64 [samples], of the whole step, on every rank alike
    groups: np.ndarray  # int64 [samples]: samples of one prompt have one number
    terms: dict[str, Term]  # what the rewards are the weighted sum of
    learnable: list[bool]  # of each mini-batch, whether any token of any rank has a weight


def scatter(step: Step | None, policy: Actor) -> Batch:
    """Each rank's own rows of the step that rank 0 has; collective."""
    shares: list[Batch] | None = None
    if step is not None:
        parts = [policy.split(rows) for rows in step.minibatches]  # [mini-batch][data-parallel rank]
        step.spared = [spared(part) if policy.shares_prompts else [] for part in parts]
        columns, learnable = list(step.minibatches[0][0].columns), step.learnable()
        shares = [
            Batch([part[rank] for part in parts], columns, step.rewards, step.groups, step.terms, learnable)
            for rank in range(len(parts[0]))
        ]
    return groups.scatter(shares, policy.data_parallel_ranks)


def tokens(batch: Sequence[TrainingRow]) -> int:
    """Of all rows, prompts included."""
    return sum(map(len, batch))
