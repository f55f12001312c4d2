"""The critic's loss: values worked out by hand, gradients against finite differences, sums over any cut."""

import pytest
import torch

from megatron_rl.algorithms.terms.value import explained_variance, value_loss


def test_values_worked_out_by_hand() -> None:
    """One value is free, one is held back by the clip, one is outside and worse for it (it keeps its gradient)."""
    values = torch.tensor([0.1, 1.0, -1.0], requires_grad=True)
    old, returns = torch.tensor([0.0, 0.0, 0.0]), torch.tensor([0.5, 1.0, 1.0])
    weights = torch.tensor([0.5, 0.3, 0.2])
    loss, metrics = value_loss(values, old, returns, weights, clip=0.2)
    # (0.1 - 0.5)^2; max(0, (0.2 - 1)^2); max((-1 - 1)^2, (-0.2 - 1)^2)
    assert loss.item() == pytest.approx(0.5 * (0.5 * 0.16 + 0.3 * 0.64 + 0.2 * 4.0), rel=1e-6)
    loss.backward()
    assert values.grad is not None
    assert values.grad.tolist() == pytest.approx([0.5 * -0.4, 0.0, 0.2 * -2.0], rel=1e-6)
    assert metrics["value_clip_fraction"].item() == pytest.approx(0.3)
    assert metrics["value_loss"].item() == loss.item() and not metrics["value_loss"].requires_grad
    assert metrics["value_mean"].item() == pytest.approx(0.05 + 0.3 - 0.2)
    assert metrics["return_mean"].item() == pytest.approx(0.25 + 0.3 + 0.2)


def test_gradient_and_explained_variance_over_any_cut() -> None:
    generator = torch.Generator().manual_seed(3)
    values, old, returns = torch.randn(3, 40, generator=generator, dtype=torch.float64)
    weights = torch.rand(40, generator=generator, dtype=torch.float64)
    weights /= weights.sum()
    values = values.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: value_loss(v, old, returns, weights, 0.4)[0], values)
    whole, metrics = value_loss(values, old, returns, weights, 0.4)
    parts = [value_loss(values[a:b], old[a:b], returns[a:b], weights[a:b], 0.4) for a, b in ((0, 7), (7, 7), (7, 40))]
    assert sum(loss.item() for loss, _ in parts) == pytest.approx(whole.item(), rel=1e-12)
    summed = {name: sum(m[name].item() for _, m in parts) for name in metrics}
    found = explained_variance(summed)
    error, mean = returns - values.detach(), (weights * returns).sum()
    spread, rest = (weights * (returns - mean).square()).sum(), (weights * error).sum()
    expected = 1 - ((weights * error.square()).sum() - rest**2) / spread
    assert found["value_explained"] == pytest.approx(expected.item(), rel=1e-9)
    assert set(found) == {"value_loss", "value_clip_fraction", "value_mean", "return_mean", "value_explained"}


def test_equal_returns_have_nothing_to_explain() -> None:
    weights, returns = torch.full((4,), 0.25), torch.ones(4)
    _, metrics = value_loss(torch.arange(4.0), torch.arange(4.0), returns, weights, 0.2)
    assert explained_variance({n: v.item() for n, v in metrics.items()})["value_explained"] == 0.0
