"""Rollouts to the reward workers and back."""

from collections.abc import Sequence

from megatron_rl.data.task import Sample, sample_of
from megatron_rl.rewards.overlong import add_overlong
from megatron_rl.rewards.workers.pool import RewardPool, Scored
from megatron_rl.rollout.rollout import Rollout


def score(pool: RewardPool, groups: Sequence[Sequence[Rollout]], step: int, limit: int) -> list[None]:
    """Fill ``scored`` of every rollout: its reward and the task's report. Blocks.

    ``step``: of RL, for curricula; ``limit``: the most tokens that a completion may have.
    """
    rollouts = [rollout for group in groups for rollout in group]
    for rollout, scored in zip(rollouts, pool.score([_sample(r, step) for r in rollouts]), strict=True):
        rollout.scored = scored
    if buffer := pool.config.overlong_buffer:
        add_overlong(rollouts, limit, buffer, pool.config.overlong_factor)
    return [None] * len(groups)


def judge(pool: RewardPool, groups: Sequence[Sequence[Rollout]], step: int) -> list[None]:
    """Fill ``scored`` of every rollout with the task's report alone. Blocks."""
    rollouts = [rollout for group in groups for rollout in group]
    for rollout, report in zip(rollouts, pool.judge([_sample(r, step) for r in rollouts]), strict=True):
        rollout.scored = Scored(0.0, report=report)
    return [None] * len(groups)


def _sample(rollout: Rollout, step: int) -> Sample:
    return sample_of(rollout.example, rollout.text, rollout.finish, step)
