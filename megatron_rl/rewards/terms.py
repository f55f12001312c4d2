"""One sample, every reward term: what a worker does, and what can be called in-process."""

import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite

from megatron_rl.rewards.config import RewardsConfig
from megatron_rl.rewards.registry import Reward, resolve
from megatron_rl.rewards.sample import Sample


class RewardError(RuntimeError):
    """A reward function raised or returned no usable score, or the workers cannot run."""


@dataclass(frozen=True)
class Term:
    """One reward function with its arguments, and its weight in the sum."""

    name: str
    weight: float
    reward: Reward


def bind(config: RewardsConfig) -> list[Term]:
    """The terms of a configuration; ``InputError`` for a name without a function."""
    return [
        Term(name, weight, partial(resolve(name), **config.args.get(name, {}))) for name, weight in config.terms.items()
    ]


def score_sample(terms: Sequence[Term], sample: Sample) -> tuple[float, dict[str, float]]:
    """The weighted sum of the terms' scores, and all components as ``term/component``.

    ``RewardError`` names the term when it raises, when its ``score`` is missing, or when a component
    is not a finite number.
    """
    total = 0.0
    components: dict[str, float] = {}
    for term in terms:
        try:
            score = term.reward(sample)
            total += term.weight * score["score"]
            for key, value in score.items():
                if not isfinite(value):
                    raise ValueError(f"{key} is {value}, not a finite number")
                components[f"{term.name}/{key}"] = float(value)
        except Exception as error:  # a reward is anyone's code, and its name is what the reader needs first
            raise RewardError(f"The reward {term.name!r} failed:\n{traceback.format_exc()}") from error
    return float(total), components
