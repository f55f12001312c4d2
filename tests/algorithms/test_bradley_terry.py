"""Bradley-Terry: known values, gradient, metrics."""

import math

import pytest
import torch

from megatron_rl.algorithms.pairs.bradley_terry import bradley_terry_loss, reward_metrics


def test_known_values() -> None:
    chosen, rejected = torch.tensor([1.5, 0.0, 2.0], dtype=torch.float64), torch.tensor([0.5, 0.0, 5.0]).double()
    assert bradley_terry_loss(chosen, rejected).tolist() == pytest.approx([0.313262, math.log(2), 3.048587], abs=1e-6)
    # a margin of 1 asks for what is there: as two equal rewards
    assert bradley_terry_loss(chosen, rejected, margin=1.0)[0].item() == pytest.approx(math.log(2), abs=1e-12)
    far = bradley_terry_loss(torch.tensor([-1e4, 1e4]), torch.tensor([1e4, -1e4]))
    assert far.tolist() == [2e4, 0.0]  # no overflow
    found = {name: value.item() for name, value in reward_metrics(chosen, rejected).items()}
    assert found == {"pair_accuracy": 1, "pair_margin": -2.0, "reward_chosen": 3.5, "reward_rejected": 5.5}


def test_gradient_is_the_probability_of_the_wrong_order() -> None:
    chosen = torch.tensor([0.3, -2.0], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([0.1, 1.0], dtype=torch.float64)
    bradley_terry_loss(chosen, rejected, 0.2).sum().backward()
    wrong = 1 / (1 + (chosen.detach() - rejected - 0.2).exp())
    assert chosen.grad is not None and torch.allclose(chosen.grad, -wrong, rtol=1e-12)
