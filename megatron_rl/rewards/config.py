"""Options of scoring."""

from dataclasses import dataclass, field
from typing import Any

from megatron_rl.option import number
from megatron_rl.rewards.schedule import Schedule

OVERLONG = "overlong"  # the part that the length of a completion costs


@dataclass
class RewardsConfig:
    """reward = sum of weight x score over the terms."""

    terms: dict[str, float] = field(default_factory=dict)  # reward name or dotted path -> weight
    args: dict[str, dict[str, Any]] = field(default_factory=dict)  # reward name -> keyword arguments
    schedules: dict[str, dict[str, Any]] = field(default_factory=dict)  # reward -> steps, start, end, kind
    workers: int = number(2, least=1, most=4096)  # worker processes
    batch_size: int = number(64, least=1)  # samples sent to a worker at once
    concurrency: int = number(32, least=1, most=4096)  # samples that a worker has under way, of asynchronous rewards
    deadline: float = number(10.0, above=0)  # seconds one sample may take before it is given up
    first_deadline: float = number(60.0, above=0)  # of a worker's first sample: rewards may load something at first use
    overlong_buffer: int = number(0, least=0)  # the last so many of rollout.max_new_tokens cost reward; 0: none
    overlong_factor: float = number(1.0, above=0)  # what a completion loses by that which uses up all of them
    deadline_score: float = 0.0  # the reward of a sample that passed its deadline or ended its worker

    @property
    def parts(self) -> dict[str, float]:
        """What a reward is the sum of: name -> weight; its component NAME/score is what the weight multiplies."""
        return self.terms | ({OVERLONG: 1.0} if self.overlong_buffer else {})

    def parts_at(self, step: int) -> dict[str, float]:
        """The same with the weights of an RL step."""
        factors = {name: Schedule(**given).factor(step) for name, given in self.schedules.items()}
        return {name: weight * factors.get(name, 1.0) for name, weight in self.parts.items()}
