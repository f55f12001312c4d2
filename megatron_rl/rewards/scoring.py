"""Rollouts to the reward workers and back."""

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from megatron_rl.rewards.pool import RewardPool, Scored
from megatron_rl.rewards.sample import Sample
from megatron_rl.rollout.rollout import Rollout


class Scoring:
    """Scores rollouts with a pool; threads that generate at the same time take turns."""

    def __init__(self, pool: RewardPool, task: Any) -> None:
        self.pool, self.task = pool, task
        self._turn = threading.Lock()

    def score(self, groups: Sequence[Sequence[Rollout]], step: int) -> list[None]:
        """Fill ``scored`` of every rollout; ``step``: of RL, for rewards with a curriculum. Blocks."""
        rollouts = [rollout for group in groups for rollout in group]
        with self._turn:
            scored = self.pool.score([sample(rollout, step) for rollout in rollouts])
        for rollout, result in zip(rollouts, scored, strict=True):
            rollout.scored = replace(result, report=self.task.report(rollout.example, rollout.text))
        return [None] * len(groups)

    def judge(self, groups: Sequence[Sequence[Rollout]]) -> list[None]:
        """Fill ``scored`` with the task's report alone. Blocks."""
        for group in groups:
            for rollout in group:
                rollout.scored = Scored(0.0, report=self.task.report(rollout.example, rollout.text))
        return [None] * len(groups)


def sample(rollout: Rollout, step: int) -> Sample:
    """A rollout as a reward sees it."""
    example = rollout.example
    return Sample(
        prompt=example.prompt,
        response=rollout.text,
        answer=example.answer,
        data_source=example.data_source,
        extra=example.extra,
        step=step,
        finish_reason=rollout.finish,
    )
