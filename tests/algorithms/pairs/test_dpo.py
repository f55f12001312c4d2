"""Known values of the losses of pairs, and TRL's formulas written out."""

import math

import pytest
import torch

from megatron_rl.actor.modules.logprobs import contrast_probs
from megatron_rl.algorithms.pairs.cdpo import CONTRAST, critical_loss
from megatron_rl.algorithms.pairs.dpo import pair_metrics, preference_loss


def test_known_values() -> None:
    margins = torch.tensor([0.0, 3.0], dtype=torch.float64)
    assert preference_loss(margins, 0.1).tolist() == pytest.approx([0.693147, 0.554355], abs=1e-6)


def test_label_smoothing_is_the_conservative_one() -> None:
    """TRL: -log s(beta m) (1 - e) - log s(-beta m) e."""
    margins = torch.linspace(-40, 40, 17, dtype=torch.float64)
    for beta, smoothing in ((0.1, 0.0), (0.5, 0.2), (1.0, 0.4)):
        wanted = [
            (1 - smoothing) * math.log1p(math.exp(-beta * m)) + smoothing * math.log1p(math.exp(beta * m))
            for m in margins.tolist()
        ]
        assert preference_loss(margins, beta, smoothing).tolist() == pytest.approx(wanted, abs=1e-12)


def test_metrics_are_implicit_rewards() -> None:
    found = pair_metrics(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 1.0]), 0.1)
    assert {k: v.item() for k, v in found.items()} == pytest.approx(
        {"pair_accuracy": 1.0, "pair_margin": -0.25, "reward_chosen": -0.1, "reward_rejected": 0.15}
    )


def test_critical_tokens_of_two_models() -> None:
    """z_positive = [0, 0], z_negative = [1, 0]: s = softmax([-1, 0]); whatever the chunk is."""
    hidden, targets = torch.eye(2)[[0, 0]], torch.tensor([0, 1])
    positive, negative = torch.zeros(2, 2), torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    for chunk in (1, 8):
        found = contrast_probs(
            (hidden, positive), (hidden, negative), targets, alpha=CONTRAST, vocab_size=2, chunk=chunk
        )
        assert found.tolist() == pytest.approx([0.268941, 0.731059], abs=1e-6)
    padded = [torch.cat([m, torch.full((3, 2), 9.0)]) for m in (positive, negative)]  # rows that are no tokens
    again = contrast_probs((hidden, padded[0]), (hidden, padded[1]), targets, alpha=CONTRAST, vocab_size=2)
    assert again.tolist() == pytest.approx([0.268941, 0.731059], abs=1e-6)


def test_critical_loss_counts_places_that_either_reply_has() -> None:
    one, other = torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[0.5, 0.0, 0.0]])
    present = torch.tensor([[True, True, False]])
    wanted = math.log1p(math.exp(-0.25)) + math.log1p(math.exp(-1.0))
    assert critical_loss(one, other, present, 0.5).item() == pytest.approx(wanted, abs=1e-6)
