"""Importance weights against known values and against the formulas written out sequence by sequence."""

import math

import pytest
import torch

from megatron_rl.algorithms.config import AlgorithmConfig
from megatron_rl.algorithms.published import settled
from megatron_rl.algorithms.terms.correction import (
    SequenceSum,
    correction_metrics,
    effective_samples,
    importance_weights,
)
from megatron_rl.algorithms.terms.objectives import policy_loss

MODES = [
    ("truncated", "token"),
    ("truncated", "sequence"),
    ("masked", "token"),
    ("masked", "sequence"),
    ("masked", "geometric"),
]
LENGTHS = [1, 7, 30, 2, 12]


def sums_of(lengths: list[int]) -> SequenceSum:
    def sequence_sum(values: torch.Tensor) -> torch.Tensor:
        return torch.cat([part.sum().expand(len(part)) for part in values.split(lengths)])

    return sequence_sum


def weigh(log_ratios: list[float], lengths: list[int], **options: object) -> tuple[list[float], list[float]]:
    config = settled(AlgorithmConfig(**options))
    weights, outside = importance_weights(torch.tensor(log_ratios), sums_of(lengths), config)
    return weights.tolist(), outside.tolist()


def test_tis_known_value() -> None:
    """Old -1, rollout -2: a ratio of e, cut at 2."""
    assert weigh([-1.0 - -2.0], [1], correction="truncated", correction_high=2.0) == ([2.0], [1.0])
    assert weigh([-1.0 - -2.0], [1], correction="masked", correction_high=2.0) == ([0.0], [1.0])
    weights, outside = weigh([-1.0 - -2.0, -30.0], [2], correction="truncated", correction_low=0.5, correction_high=5.0)
    assert weights == pytest.approx([math.e, 0.5], rel=1e-6) and outside == [0.0, 1.0]


def test_a_sequence_has_the_product_of_its_ratios() -> None:
    log_ratios = [0.4, 0.4, -0.1, -0.3]  # products e^0.8 = 2.2255 and e^-0.4 = 0.6703
    kinds = dict(correction_level="sequence", correction_low=0.5, correction_high=2.0)
    weights, outside = weigh(log_ratios, [2, 2], correction="truncated", **kinds)
    assert weights == pytest.approx([2.0, 2.0, 0.67032, 0.67032], abs=1e-6) and outside == [1.0, 1.0, 0.0, 0.0]
    weights, outside = weigh(log_ratios, [2, 2], correction="masked", **kinds)
    assert weights == pytest.approx([0.0, 0.0, 0.67032, 0.67032], abs=1e-6) and outside == [1.0, 1.0, 0.0, 0.0]


def test_seq_mask_tis_masks_by_the_geometric_mean_and_weighs_by_token() -> None:
    log_ratios = [0.5, -0.3, 0.9, 0.7]  # geometric means e^0.1 = 1.105 and e^0.8 = 2.2255
    weights, outside = weigh(log_ratios, [2, 2], correction="masked", correction_level="geometric", correction_low=0.5)
    assert weights == pytest.approx([math.exp(0.5), math.exp(-0.3), 0.0, 0.0], rel=1e-6)
    assert outside == [0.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize(("correction", "level"), MODES)
def test_equals_the_formulas_written_out(correction: str, level: str) -> None:
    generator = torch.Generator().manual_seed(0)
    log_ratios = torch.randn(sum(LENGTHS), generator=generator) * 0.4
    low, high = (0.5, 2.0) if level != "geometric" else (0.9, 1.05)
    config = settled(
        AlgorithmConfig(correction=correction, correction_level=level, correction_low=low, correction_high=high)
    )
    weights, outside = importance_weights(log_ratios, sums_of(LENGTHS), config)
    expected, cut = [], []
    for sequence in (part.tolist() for part in log_ratios.split(LENGTHS)):
        for d in sequence:
            exponent = {"token": d, "sequence": sum(sequence), "geometric": sum(sequence) / len(sequence)}[level]
            inside = low <= math.exp(exponent) <= high
            cut.append(0.0 if inside else 1.0)
            if correction == "truncated":
                expected.append(min(max(math.exp(exponent), low), high))
            else:
                expected.append(inside * math.exp(d if level == "geometric" else exponent))
    assert outside.tolist() == cut and 0 < sum(cut) < len(cut)
    assert weights.tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("correction", "level"), MODES)
def test_on_policy_nothing_changes(correction: str, level: str) -> None:
    """pi = pi_old = pi_rollout: the weights are 1, loss and gradient those without a correction, to the last bit."""
    generator = torch.Generator().manual_seed(1)
    n = sum(LENGTHS)
    logprobs = -torch.rand(n, generator=generator).requires_grad_()
    advantages, token_weights = torch.randn(n, generator=generator), torch.rand(n, generator=generator) / n
    config = settled(AlgorithmConfig(correction=correction, correction_level=level, correction_low=0.5))
    old = logprobs.detach()
    weights, outside = importance_weights(old - old.clone(), sums_of(LENGTHS), config)
    assert weights.tolist() == [1.0] * n and outside.tolist() == [0.0] * n
    plain, _ = policy_loss(logprobs, old, advantages, token_weights, config)
    corrected, _ = policy_loss(logprobs, old, advantages, token_weights, config, correction=weights)
    assert torch.equal(plain, corrected)
    assert torch.equal(torch.autograd.grad(plain, logprobs)[0], torch.autograd.grad(corrected, logprobs)[0])


def test_the_surrogate_alone_is_weighted_and_no_gradient_flows_through_the_weights() -> None:
    logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
    config = settled(AlgorithmConfig(kl_coef=0.1, correction="truncated"))
    correction, _ = importance_weights(logprobs - torch.tensor([-1.5, -2.0]), sums_of([2]), config)
    old, reference = logprobs.detach(), torch.tensor([-1.2, -2.1])
    loss, metrics = policy_loss(
        logprobs, old, torch.tensor([1.0, -1.0]), torch.tensor([0.5, 0.5]), config, reference, correction=correction
    )
    loss.backward()
    factor, kl = math.exp(0.5), [math.exp(-d) - 1 + d for d in (0.2, 0.1)]
    assert metrics["policy_loss"].item() == pytest.approx(0.5 * (-factor + 1), abs=1e-6)
    assert loss.item() == pytest.approx(0.5 * (-factor + 1) + 0.1 * 0.5 * sum(kl), abs=1e-6)
    assert logprobs.grad is not None
    slopes = [0.1 * (1 - math.exp(-d)) for d in (0.2, 0.1)]
    assert logprobs.grad.tolist() == pytest.approx([0.5 * (-factor + slopes[0]), 0.5 * (1 + slopes[1])], abs=1e-6)


def test_extremes_stay_finite_and_nans_show() -> None:
    for correction, level in MODES:
        weights, _ = weigh([500.0, -500.0, 300.0], [1, 1, 1], correction=correction, correction_level=level)
        expected = [2.0, 0.0, 2.0] if correction == "truncated" else [0.0, 0.0, 0.0]
        assert weights == pytest.approx(expected, abs=1e-8)
        weights, _ = weigh([math.nan, 0.0], [1, 1], correction=correction, correction_level=level)
        assert math.isnan(weights[0]) and weights[1] == 1.0


def test_metrics() -> None:
    token_weights = torch.tensor([0.25, 0.25, 0.5])
    metrics = correction_metrics(token_weights, torch.tensor([2.0, 1.0, 0.0]), torch.tensor([1.0, 0.0, 1.0]))
    values = {name: value.item() for name, value in metrics.items()}
    assert values == {"correction_weight": 0.75, "correction_square": 1.25, "correction_fraction": 0.75}
    assert effective_samples(0.75, 1.25) == pytest.approx(0.45)
    assert effective_samples(1.3, 1.3**2) == pytest.approx(1.0)
    assert effective_samples(0.0, 0.0) == 0.0
