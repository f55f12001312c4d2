import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_rl.algorithms.terms.aggregation import token_weights

LENGTHS = st.lists(st.integers(0, 50), min_size=1, max_size=12)


def test_known_values() -> None:
    assert token_weights([3, 1, 4], "token-mean") == pytest.approx([1 / 8] * 3)
    assert token_weights([3, 1, 4], "seq-mean-token-mean") == pytest.approx([1 / 9, 1 / 3, 1 / 12])
    assert token_weights([2, 0, 4], "token-mean") == pytest.approx([1 / 6, 0, 1 / 6])
    assert token_weights([2, 0, 4], "seq-mean-token-mean") == pytest.approx([1 / 4, 0, 1 / 8])


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean"])
def test_nothing_trained_weighs_nothing(mode: str) -> None:
    assert np.array_equal(token_weights([0, 0], mode), [0.0, 0.0])
    assert token_weights([], mode).shape == (0,)


@given(LENGTHS, st.randoms(use_true_random=False))
def test_the_weighted_sum_is_the_named_mean(lengths: list[int], random) -> None:
    losses = [np.array([random.uniform(-3, 3) for _ in range(length)]) for length in lengths]
    trained = [loss for loss in losses if len(loss)]
    expected = {
        "token-mean": np.concatenate(trained).mean() if trained else 0.0,
        "seq-mean-token-mean": np.mean([loss.mean() for loss in trained]) if trained else 0.0,
    }
    for mode, value in expected.items():
        weights = token_weights(lengths, mode)
        assert sum(w * loss.sum() for w, loss in zip(weights, losses, strict=True)) == pytest.approx(value, abs=1e-12)


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="token-mean, seq-mean-token-mean or"):
        token_weights([1], "sum")
