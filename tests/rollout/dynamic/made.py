"""Scored rollouts of one token, made without an engine."""

from dataclasses import dataclass, field

import numpy as np

from megatron_rl.data.task import Example
from megatron_rl.rollout.rollout import Rollout


@dataclass
class Points:
    reward: float
    components: dict[str, float] = field(default_factory=dict)
    report: dict[str, float] | None = None
    timed_out: bool = False
    crashed: bool = False
    failure: str = ""
    step: int = 0


def rollout(scored: Points, name: str = "0", version: int = 0, finish: str = "stop") -> Rollout:
    return Rollout(
        example=Example(name, "p", "a"),
        tokens=np.array([5, 7], dtype=np.int64),
        drawn=np.array([False, True]),
        logprobs=np.array([0.0, -0.1], dtype=np.float32),
        prompt=1,
        text="x",
        finish=finish,
        versions=((version, 1),),
        scored=scored,
    )


def group(rewards: list[float], name: str = "0", version: int = 0) -> list[Rollout]:
    return [rollout(Points(r, {"right/score": r}, {"correct": float(r > 0)}), name, version) for r in rewards]
