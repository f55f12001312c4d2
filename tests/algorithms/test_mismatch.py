import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_rl.algorithms.config import AlgorithmConfig
from megatron_rl.algorithms.mismatch import alarm, mismatch, percentile


def values(report: dict[str, torch.Tensor]) -> dict[str, float]:
    """The scalars; of the gaps of all tokens the largest."""
    return {name: metric.max().item() if metric.numel() else 0.0 for name, metric in report.items()}


def test_known_values() -> None:
    engine = torch.tensor([-1.0, -2.0, -3.0, -4.0], dtype=torch.float64)
    actor = torch.tensor([-1.2, -1.8, -4.0, -4.0], dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    report = mismatch(actor, engine, weights)  # engine - actor = .2, -.2, 1, 0
    assert not any(metric.requires_grad for metric in report.values())
    assert values(report) == pytest.approx(
        {
            "max_logprob_gap": 1.0,
            "p99_logprob_gap": 1.0,
            "logprob_gap": 0.36,
            "engine_kl_k1": 0.28,
            "engine_kl_k3": 0.1 * 0.01873075 + 0.2 * 0.02140276 + 0.3 * 0.36787944,
        },
        abs=1e-8,
    )


def test_equal_log_probs_and_no_tokens_give_zero() -> None:
    logprobs = torch.randn(100, generator=torch.Generator().manual_seed(0))
    zero = dict.fromkeys(("max_logprob_gap", "p99_logprob_gap", "logprob_gap", "engine_kl_k1", "engine_kl_k3"), 0.0)
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


def alone(counts: torch.Tensor) -> torch.Tensor:
    return counts


@settings(max_examples=50, deadline=None)
@given(
    values=st.lists(st.floats(0, 100, width=32) | st.sampled_from([0.0, 1e-45, 0.5, 7.0]), min_size=1, max_size=120),
    percent=st.sampled_from([0.0, 1.0, 50.0, 99.0, 100.0]),
)
def test_a_percentile_is_the_one_of_the_sorted_values(values: list[float], percent: float) -> None:
    exact = np.percentile(np.array(values, dtype=np.float32), percent, method="inverted_cdf")
    assert percentile(torch.tensor(values, dtype=torch.float32), percent, alone) == exact


def test_a_percentile_of_many_of_none_and_of_nans() -> None:
    shuffled = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    assert percentile(shuffled.float(), 99, alone) == 989.0  # 990 of the 1000 values do not exceed it
    assert percentile(torch.zeros(0), 99, alone) == 0.0
    assert percentile(torch.tensor([1.0, math.inf]), 99, alone) == math.inf
    assert math.isnan(percentile(torch.tensor([1.0, -math.nan, 2.0]), 99, alone))


def test_the_alarm_names_what_it_saw() -> None:
    config = AlgorithmConfig(mismatch_limit=0.1)
    metrics = {"engine_kl_k3": 0.1, "p99_logprob_gap": 0.75, "max_logprob_gap": 3.5}
    assert alarm(metrics, config) is None
    said = alarm(metrics | {"engine_kl_k3": 0.1234}, config)
    assert said is not None
    for part in ("engine_kl_k3=0.123 nats", "p99 0.75, largest 3.5", "algorithm.mismatch_limit is 0.1", "weights"):
        assert part in said
    assert "engine_kl_k3=nan" in str(alarm(metrics | {"engine_kl_k3": math.nan}, config))
    assert alarm(metrics | {"engine_kl_k3": 9.0}, AlgorithmConfig(mismatch_limit=0.0)) is None
