"""Which rollouts can be learned from: those whose numbers are numbers."""

from typing import Any

import numpy as np

from megatron_rl.rollout.rollout import Rollout


def unsound(rollout: Rollout) -> str:
    """Why a scored rollout must not be learned from, nor count in its group's baseline; "" for a sound one."""
    broken = next((f"{k} is {v}" for k, v in rollout.scored.components.items() if not np.isfinite(v)), "")
    if not np.isfinite(rollout.scored.reward):
        return f"its reward is {rollout.scored.reward}{f' ({broken})' if broken else ''}"
    if broken:
        return f"its reward's component {broken}"
    wrong = rollout.drawn & ~np.isfinite(rollout.logprobs)
    if wrong.any():
        place = int(np.flatnonzero(wrong)[0])
        return f"the engine's log-prob of its token {place} is {rollout.logprobs[place]}"
    return ""


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
