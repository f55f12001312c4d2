import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_rl.algorithms.terms.kl import ESTIMATORS, token_kl


def of(d: float, estimator: str) -> float:
    return token_kl(torch.tensor([d], dtype=torch.float64), torch.zeros(1, dtype=torch.float64), estimator).item()


@pytest.mark.parametrize(
    ("d", "k1", "k2", "k3"),
    [(0.2, 0.2, 0.02, 0.01873075), (-0.2, -0.2, 0.02, 0.02140276), (1.0, 1.0, 0.5, 0.36787944), (0.0, 0.0, 0.0, 0.0)],
)
def test_known_values(d: float, k1: float, k2: float, k3: float) -> None:
    assert [of(d, name) for name in ESTIMATORS] == pytest.approx([k1, k2, k3, k3], abs=5e-9)


@given(st.floats(-30, 30, width=32))
def test_k3_is_positive_except_at_zero(d: float) -> None:
    value = token_kl(torch.tensor([d]), torch.zeros(1), "k3").item()
    assert value >= 0
    assert value > 0 or abs(d) < 1e-6
    assert of(d, "k3") > 0 or abs(d) < 1e-14


def test_k3_keeps_its_digits_near_zero_in_float32() -> None:
    assert token_kl(torch.tensor([1e-4]), torch.zeros(1), "k3").item() == pytest.approx(5e-9, rel=0.02)


def test_expectations_are_the_kl_of_a_finite_distribution() -> None:
    generator = torch.Generator().manual_seed(0)
    policy = (torch.randn(9, generator=generator, dtype=torch.float64) / 2).log_softmax(0)
    reference = (torch.randn(9, generator=generator, dtype=torch.float64) / 2).log_softmax(0)
    exact = torch.nn.functional.kl_div(reference, policy, log_target=True, reduction="sum").item()
    for estimator in ("k1", "k3"):
        assert (policy.exp() * token_kl(policy, reference, estimator)).sum().item() == pytest.approx(exact, abs=1e-12)


def test_on_policy_gradient_of_k2_is_the_gradient_of_the_kl() -> None:
    logits = torch.tensor([0.3, -0.8, 1.1], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()
    policy = logits.log_softmax(0)
    exact = torch.autograd.grad((policy.exp() * (policy - reference)).sum(), logits, retain_graph=True)[0]
    sampled = torch.autograd.grad((policy.exp().detach() * token_kl(policy, reference, "k2")).sum(), logits)[0]
    assert torch.allclose(sampled, exact, atol=1e-12)


def test_k3_is_bounded_and_has_no_gradient_beyond_its_bound() -> None:
    logprobs = torch.tensor([-50.0, -4.0, -1.0], requires_grad=True)
    value = token_kl(logprobs, torch.zeros(3), "k3")
    assert value.tolist() == pytest.approx([10, 10, 0.7182818])
    value.sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([0, 0, -1.7182818])  # 1 - exp(-d)


def test_an_unknown_estimator_is_refused() -> None:
    with pytest.raises(ValueError, match="k1, k2, k3"):
        of(0.1, "k4")
