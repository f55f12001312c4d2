"""A soft limit on the length of completions (DAPO, arXiv 2503.14476, equation 13)."""

from collections.abc import Sequence
from dataclasses import replace

from megatron_rl.rewards.config import OVERLONG
from megatron_rl.rollout.rollout import Rollout


def overlong(length: int, limit: int, buffer: int, factor: float = 1.0) -> float:
    """0 up to ``limit - buffer`` tokens, then falling linearly to ``-factor`` at ``limit`` tokens:
    min(-(length - (limit - buffer)) / buffer * factor, 0)."""
    return min(-(length - (limit - buffer)) / buffer * factor, 0.0)


def add_overlong(rollouts: Sequence[Rollout], limit: int, buffer: int, factor: float) -> None:
    """Add it, of the number of tokens drawn, to the reward and the components of scored rollouts.

    Those that have no score (a timeout, a crash) keep the reward that stands for that.
    """
    for rollout in rollouts:
        if not rollout.scored.failure:
            penalty = overlong(rollout.length, limit, buffer, factor) + 0.0  # no -0.0
            components = {**rollout.scored.components, f"{OVERLONG}/score": penalty}
            rollout.scored = replace(rollout.scored, reward=rollout.scored.reward + penalty, components=components)
