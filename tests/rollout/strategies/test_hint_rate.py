"""Curves of accuracy under hints: known values of SEELE, and what must hold of any."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares

from megatron_rl.rollout.strategies.hint_rate import (
    HIGHEST,
    LOWEST,
    START,
    Curve,
    cold_start,
    fit,
    gather,
    told_steps,
)


@pytest.mark.parametrize(
    ("curve", "target", "rate"),
    [
        (Curve(10, -0.4, 0), 0.5, 0.4),
        (Curve(10, -0.6, 0.2), 0.5, 0.548917),
        (Curve(19.03, -0.64, 0.45), 0.5, 0.519002),
        (Curve(10, -0.6, 0.45), 0.4, 0.0),
        (Curve(10, -0.6, 0.4), 0.4, 0.0),
        (Curve(10, 0.5, 0), 0.5, 0.0),
        (Curve(1, -1.5, 0), 0.9, 1.0),
    ],
)
def test_the_inverse(curve: Curve, target: float, rate: float) -> None:
    assert curve.rate(target) == pytest.approx(rate, abs=1e-6)


@given(st.floats(0.1, 50), st.floats(-1.5, 0.5), st.floats(0, 0.9), st.floats(0.05, 0.95))
def test_the_inverse_is_one(slope: float, shift: float, floor: float, target: float) -> None:
    curve = Curve(slope, shift, floor)
    rate = curve.rate(target)
    assert 0 <= rate <= 1
    if 0 < rate < 1:
        assert curve.accuracy(rate) == pytest.approx(target, abs=1e-9)


def test_points_of_a_curve_give_it_back() -> None:
    true = Curve(12, -0.45, 0.1)
    found = fit(gather([(p, true.accuracy(p)) for p in (0, 0.25, 0.5, 0.75, 1)]))
    assert found == pytest.approx(true, abs=1e-6)
    assert found.rate(0.5) == pytest.approx(0.431405, abs=1e-6)


def test_what_two_rounds_say() -> None:
    """The least squares of the first are reached at the largest slope alone; 300 evaluations from START come to 0.4297.

    The least sum has slope 50, and 0.25 at rate 0.4: rate 0.4 + ln(3) / 50.
    """
    rate = fit(gather([(0.8, 1), (0.4, 0.25)])).rate(0.5)
    assert rate == pytest.approx(0.4297, abs=0.01) and rate == pytest.approx(0.4 + math.log(3) / 50, abs=0.004)
    assert told_steps(rate, 5) == 2
    assert fit(gather([(0.8, 0)])).rate(0.5) == pytest.approx(0.9, abs=1e-3)
    assert 0 < fit(gather([(0.8, 1)])).rate(0.5) < 0.8


def test_rounding_and_cold_start() -> None:
    assert [cold_start(n) for n in (1, 2, 3, 4, 5)] == pytest.approx([0, 0.5, 2 / 3, 0.75, 0.8])
    assert [told_steps(cold_start(n), n) for n in (1, 2, 3, 4, 5, 7, 50)] == [0, 1, 2, 3, 4, 6, 49]
    assert [told_steps(0.9, 5), told_steps(0.5, 5), told_steps(0.3, 5), told_steps(0.299, 5)] == [5, 3, 2, 1]  # half-up
    assert (told_steps(0.0, 9), told_steps(1.0, 9)) == (0, 9)


def test_margins_and_means() -> None:
    assert gather([]) == ((0.0, 0.0), (1.0, 1.0))
    assert gather([(0.5, 1), (0.5, 0), (0.25, 0.5)]) == ((0.0, 0.0), (0.25, 0.5), (0.5, 0.5), (1.0, 1.0))
    assert gather([(0.0, 0.5), (1.0, 0.75)]) == ((0.0, 0.5), (1.0, 0.75))


eighths = st.integers(0, 8).map(lambda right: right / 8)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), eighths), min_size=1, max_size=4))
def test_no_fit_is_worse_than_a_long_one(seen: list[tuple[float, float]]) -> None:
    """Of SciPy with its own limit of evaluations, from the same start with differences for derivatives."""
    points = gather(seen)
    rates, accuracies = np.array(points).T

    def residuals(x: np.ndarray) -> np.ndarray:
        return x[2] + (1 - x[2]) / (1 + np.exp(-x[0] * (rates + x[1]))) - accuracies

    found = fit(points)
    assert all(low <= value <= high for low, value, high in zip(LOWEST, found, HIGHEST, strict=True))
    long = least_squares(residuals, START, bounds=(LOWEST, HIGHEST), method="trf")
    assert (residuals(np.array(found)) ** 2).sum() / 2 <= long.cost + 2e-3
    assert 0 <= found.rate(0.5) <= 1
