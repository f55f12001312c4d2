"""The numbers of one step's rollouts."""

from collections.abc import Sequence

import numpy as np

from megatron_rl.rollout.mean import summarise
from megatron_rl.rollout.rollout import Rollout
from megatron_rl.rollout.sound import unsound
from megatron_rl.rollout.strategies.hinted import measure_hints


def measure(groups: Sequence[Sequence[Rollout]]) -> dict[str, float]:
    """Rewards, lengths (tokens drawn) and what went wrong in scoring, over all rollouts of scored groups.

    Rollouts that are not sound have no rewards to speak of; where none is, their mean is not among the numbers. Nor is
    a mean length over completions of which there are none.
    """
    rollouts = [rollout for group in groups for rollout in group]
    sound = [[rollout for rollout in group if not unsound(rollout)] for group in groups]
    rewards = np.array([r.scored.reward for group in sound for r in group])
    lengths = np.array([r.length for r in rollouts])
    metrics = {"reward": float(rewards.mean())} if len(rewards) else {}
    metrics |= {
        "reward_std": float(rewards.std()) if len(rewards) else 0.0,
        "accuracy": summarise([r.scored.report for r in rollouts if r.scored.report is not None]).get("correct", 0.0),
        "equal_groups": float(np.mean([len({r.scored.reward for r in group}) <= 1 for group in sound])),
        "length": float(lengths.mean()),
        "length_max": float(lengths.max()),
        "truncated": float(np.mean([r.finish == "length" for r in rollouts])),
        "pass_at_k": float(np.mean([any(_right(r) for r in group) for group in groups])),
        "tokens": float(lengths.sum()),  # generated
        "reward_timeouts": float(sum(r.scored.timed_out for r in rollouts)),
        "reward_crashes": float(sum(r.scored.crashed for r in rollouts)),
    }
    by_fate = {
        "length_stopped": [r.length for r in rollouts if r.finish == "stop"],
        "length_right": [r.length for r in rollouts if _right(r)],
        "length_wrong": [r.length for r in rollouts if r.scored.report is not None and not _right(r)],
    }
    metrics |= {name: float(np.mean(of)) for name, of in by_fate.items() if of}
    sources = {r.example.data_source for r in rollouts}
    if len(sources) > 1:
        reports = {s: [r.scored.report for r in rollouts if r.example.data_source == s] for s in sorted(sources)}
        metrics |= {
            f"accuracy/{source or 'unnamed'}": summarise([r for r in of if r is not None]).get("correct", 0.0)
            for source, of in reports.items()
        }
    if any(r.hinted is not None for r in rollouts):
        metrics |= measure_hints(groups)
    components = summarise([r.scored.components for group in sound for r in group])
    return metrics | {f"reward/{k}": v for k, v in components.items()}


def _right(rollout: Rollout) -> bool:
    return rollout.scored.report is not None and rollout.scored.report.get("correct", 0.0) > 0.5


def staleness(groups: Sequence[Sequence[Rollout]], version: int) -> dict[str, float]:
    """By how many versions the weights that drew the tokens are older than ``version``: mean over tokens, largest."""
    spans = np.array([[version - v, count] for group in groups for r in group for v, count in r.versions])
    return {
        "staleness": float((spans[:, 0] * spans[:, 1]).sum() / max(spans[:, 1].sum(), 1)),
        "staleness_max": float(spans[:, 0].max()),
    }
