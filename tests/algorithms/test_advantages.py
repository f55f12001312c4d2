import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from megatron_rl.algorithms.terms.advantages import group_advantages

GROUPS = arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(2, 9)), elements=st.floats(-5, 5, width=32))


@pytest.mark.parametrize(
    ("rewards", "std", "expected"),
    [
        ([1, 0, 0, 0], "sample", [1.499997, -0.499999, -0.499999, -0.499999]),
        ([1, 0, 0, 0], "population", [1.732047, -0.577349, -0.577349, -0.577349]),
        ([1, 1, 0, 0], "sample", [0.866024, 0.866024, -0.866024, -0.866024]),
        ([0.25, 0.5, 0.75, 0.5], "sample", [-1.224739, 0, 1.224739, 0]),
        ([0.25, 0.5, 0.75, 0.5], "population", [-1.414206, 0, 1.414206, 0]),
    ],
)
def test_known_values(rewards: list[float], std: str, expected: list[float]) -> None:
    assert group_advantages(np.array([rewards]), std, 1e-6)[0] == pytest.approx(expected, abs=5e-7)


@given(st.floats(-1e3, 1e3), st.integers(2, 33), st.sampled_from(["sample", "population"]))
def test_equal_rewards_give_exactly_zero(reward: float, size: int, std: str) -> None:
    assert np.array_equal(group_advantages(np.full((2, size), reward), std, 1e-6), np.zeros((2, size)))


@given(GROUPS, st.integers(-64, 64), st.sampled_from(["sample", "population"]))
def test_shift_invariant_and_centred(rewards: np.ndarray, shift: int, std: str) -> None:
    advantages = group_advantages(rewards, std)
    assert np.abs(advantages.sum(axis=1)).max() < 1e-9
    assert group_advantages(rewards + shift, std) == pytest.approx(advantages, abs=1e-6)


@given(GROUPS)
def test_matches_the_textbook_formula_and_keeps_groups_apart(rewards: np.ndarray) -> None:
    expected = np.stack([(row - row.mean()) / (row.std(ddof=1) + 1e-6) for row in rewards])
    assert group_advantages(rewards, "sample", 1e-6) == pytest.approx(expected, abs=1e-8)


def test_float32_rewards_are_computed_in_float64() -> None:
    advantages = group_advantages(np.array([[1000.1, 1000.2, 1000.3]], dtype=np.float32), "population", 0.0)
    assert advantages.dtype == np.float64
    assert advantages[0] == pytest.approx([-1.224745, 0, 1.224745], abs=1e-3)


def test_a_group_of_one_and_an_unknown_std_are_refused() -> None:
    with pytest.raises(ValueError, match="size >= 2"):
        group_advantages(np.ones((3, 1)))
    with pytest.raises(ValueError, match="sample or population"):
        group_advantages(np.ones((3, 2)), "biased")
