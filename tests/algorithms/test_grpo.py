"""GRPO's credit, sample by sample."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from megatron_rl.algorithms.algorithm import CreditBatch
from megatron_rl.algorithms.config import AlgorithmConfig
from megatron_rl.algorithms.grpo import GRPO


@dataclass
class Tokens:
    """A micro-batch of one rank."""

    lengths: torch.Tensor
    samples: torch.Tensor
    columns: dict[str, torch.Tensor] = field(default_factory=dict)

    def sequence_sum(self, values: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


def test_each_token_gets_its_samples_advantage_wherever_it_lies() -> None:
    """Two groups whose samples lie mixed in two micro-batches, one sequence of them without a trained token."""
    batches = [
        Tokens(torch.tensor([2, 1, 0]), torch.tensor([5, 0, 3])),
        Tokens(torch.tensor([3, 1, 2]), torch.tensor([2, 1, 4])),
    ]
    rewards = np.array([1.0, 0.0, 0.25, 0.0, 0.5, 0.75])
    groups = np.array([0, 0, 1, 0, 1, 1])
    credit = GRPO(AlgorithmConfig()).credit(CreditBatch(batches, rewards, groups))
    # (r - mean) / (std + 1e-6), std of n - 1: {1, 0, 0}: 1/sqrt(3); {.25, .5, .75}: .25
    s = 3**-0.5
    expected = [2 / 3 / (s + 1e-6), -1 / 3 / (s + 1e-6), -0.25 / 0.250001, -1 / 3 / (s + 1e-6), 0.0, 0.25 / 0.250001]
    assert credit == pytest.approx(expected, abs=1e-12)
    assert batches[0].columns["advantage"].tolist() == pytest.approx([expected[5]] * 2 + [expected[0]])
    of_second = [expected[2]] * 3 + [expected[1]] + [expected[4]] * 2
    assert batches[1].columns["advantage"].tolist() == pytest.approx(of_second)
    assert batches[1].columns["advantage"].dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "needs"),
    [
        ({}, set()),  # one mini-batch: the first update's own log-probs are the old ones
        ({"minibatches": 2}, {"old"}),
        ({"minibatches": 2, "bypass": True}, set()),
        ({"kl_coef": 0.1}, {"reference"}),
    ],
)
def test_nothing_is_scored_that_is_not_needed(options: dict, needs: set[str]) -> None:
    assert GRPO(AlgorithmConfig(**options)).needs == needs
