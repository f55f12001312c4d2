"""Options of scoring."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class RewardsConfig:
    """reward = sum of weight x score over the terms."""

    terms: dict[str, float] = field(default_factory=dict)  # reward name or dotted path -> weight
    args: dict[str, dict[str, Any]] = field(default_factory=dict)  # reward name -> keyword arguments
    workers: int = 2  # worker processes
    batch_size: int = 64  # samples sent to a worker at once
    deadline: float = 10.0  # seconds one sample may take before its worker is killed
    first_deadline: float = 60.0  # at most for the first sample of a worker, in which rewards may load something
    deadline_score: float = 0.0  # the reward of a sample that passed its deadline or ended its worker
