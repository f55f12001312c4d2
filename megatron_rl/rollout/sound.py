"""Which rollouts can be learned from: those whose numbers are numbers, and, if asked, those that came to an end."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from megatron_rl.rollout.rollout import Rollout


def unsound(rollout: Rollout) -> str:
    """Why a scored rollout must not be learned from, nor count in its group's baseline; "" for a sound one."""
    if not np.isfinite(rollout.scored.reward):
        return f"its reward is {rollout.scored.reward}"
    if broken := next((f"{k} is {v}" for k, v in rollout.scored.components.items() if not np.isfinite(v)), ""):
        return f"its reward's component {broken}"
    wrong = rollout.drawn & ~np.isfinite(rollout.logprobs)
    if wrong.any():
        place = int(np.flatnonzero(wrong)[0])
        return f"the engine's log-prob of its token {place} is {rollout.logprobs[place]}"
    return ""


def learned_from(rollouts: Sequence[Rollout], truncated: str = "keep") -> np.ndarray:
    """bool [rollouts]: those whose tokens have a weight and count in the denominators of the loss.

    ``truncated`` (algorithm.truncated): keep | mask: completions that were cut off are not (DAPO's overlong filtering);
    their rewards still count in the baseline of their group.
    """
    ended = [truncated == "keep" or rollout.finish != "length" for rollout in rollouts]
    return np.array([not unsound(r) and complete for r, complete in zip(rollouts, ended, strict=True)], dtype=bool)


def record(rollout: Rollout, reason: str) -> dict[str, Any]:
    """A rollout that is left out, as JSON: what somebody needs to find out why."""
    return {
        "reason": reason,
        "id": rollout.example.id,
        "prompt": rollout.example.prompt,
        "response": rollout.text,
        "finish_reason": rollout.finish,
        "reward": rollout.scored.reward,
        "components": dict(rollout.scored.components),
        "weight_versions": rollout.versions,
        "tokens": rollout.tokens.tolist(),
        "drawn": rollout.drawn.tolist(),
        "logprobs": rollout.logprobs.tolist(),
    }
