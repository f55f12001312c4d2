import math

import pytest
import torch

from megatron_rl.algorithms.mismatch import mismatch


def values(report: dict[str, torch.Tensor]) -> dict[str, float]:
    return {name: metric.item() for name, metric in report.items()}


def test_known_values() -> None:
    engine = torch.tensor([-1.0, -2.0, -3.0, -4.0], dtype=torch.float64)
    actor = torch.tensor([-1.2, -1.8, -4.0, -4.0], dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    report = mismatch(actor, engine, weights)  # engine - actor = .2, -.2, 1, 0
    assert not any(metric.requires_grad for metric in report.values())
    assert values(report) == pytest.approx(
        {
            "max_logprob_gap": 1.0,
            "logprob_gap": 0.36,
            "engine_kl_k1": 0.28,
            "engine_kl_k3": 0.1 * 0.01873075 + 0.2 * 0.02140276 + 0.3 * 0.36787944,
        },
        abs=1e-8,
    )


def test_equal_log_probs_and_no_tokens_give_zero() -> None:
    logprobs = torch.randn(100, generator=torch.Generator().manual_seed(0))
    zero = {"max_logprob_gap": 0.0, "logprob_gap": 0.0, "engine_kl_k1": 0.0, "engine_kl_k3": 0.0}
    assert values(mismatch(logprobs, logprobs.clone(), torch.full((100,), 0.01))) == zero
    assert values(mismatch(torch.zeros(0), torch.zeros(0), torch.zeros(0))) == zero


def test_estimates_the_kl_from_engine_to_actor() -> None:
    generator = torch.Generator().manual_seed(1)
    engine = torch.randn(5, generator=generator, dtype=torch.float64).div(2).log_softmax(0)
    actor = torch.randn(5, generator=generator, dtype=torch.float64).div(2).log_softmax(0)
    tokens = torch.multinomial(engine.exp(), 200_000, replacement=True, generator=generator)
    report = values(mismatch(actor[tokens], engine[tokens], torch.full((200_000,), 1 / 200_000, dtype=torch.float64)))
    exact = (engine.exp() * (engine - actor)).sum().item()
    assert report["engine_kl_k1"] == pytest.approx(exact, rel=0.03)
    assert report["engine_kl_k3"] == pytest.approx(exact, rel=0.03)


def test_a_nan_is_not_hidden() -> None:
    report = values(mismatch(torch.tensor([0.0, math.nan]), torch.zeros(2), torch.full((2,), 0.5)))
    assert all(math.isnan(value) for value in report.values())
