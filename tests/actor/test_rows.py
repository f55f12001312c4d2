"""Rows on their way to the ranks."""

import pickle

import numpy as np
import pytest

from megatron_rl.actor.rows import TrainingRow

LENGTH, PROMPT = 4000, 500


def row(**columns: np.ndarray) -> TrainingRow:
    rng = np.random.default_rng(1)
    logprobs = rng.standard_normal(LENGTH).astype(np.float32)
    routing = rng.integers(0, 8, (LENGTH - 1, 4)).astype(np.int16)
    tokens = rng.integers(0, 150_000, LENGTH)
    return TrainingRow(tokens, columns | {"logprobs": logprobs}, PROMPT, routing, sample=7, unit=3)


def flat(first: float, last: float, places: int = PROMPT) -> np.ndarray:
    column = np.full(LENGTH, last, dtype=np.float32)
    column[:places] = first
    return column


@pytest.mark.parametrize(
    ("column", "short"),
    [
        (flat(0.0, 0.125), True),
        (flat(np.nan, -np.inf), True),
        (flat(0.0, 0.125, PROMPT - 1), False),
        (flat(0.0, 0.125, PROMPT + 1), False),
        (np.where(np.arange(LENGTH) == 9, np.float32(-0.0), flat(0.0, 1.0)), False),  # equal, but other bits
        (np.where(np.arange(LENGTH) == LENGTH - 2, np.float32(2.0), flat(0.0, 1.0)), False),
    ],
)
def test_rows_arrive_bit_by_bit(column: np.ndarray, short: bool) -> None:
    sent = row(weight=column)
    content = pickle.dumps(sent, pickle.HIGHEST_PROTOCOL)
    got = pickle.loads(content)
    assert got.__dict__.keys() == sent.__dict__.keys()
    assert (got.prompt, got.sample, got.unit) == (PROMPT, 7, 3)
    assert got.tokens.dtype == np.int64 and np.array_equal(got.tokens, sent.tokens)
    assert np.array_equal(got.experts, sent.experts)
    for name, values in sent.columns.items():
        assert got.columns[name].dtype == np.float32 and got.columns[name].tobytes() == values.tobytes()
        got.columns[name][0] = 1.0  # they are the rank's own
    numbers = LENGTH * (4 + 4 + 0 if short else 4 + 4 + 4) + sent.experts.nbytes  # type: ignore[union-attr]
    assert numbers <= len(content) <= numbers + 2000


@pytest.mark.parametrize("prompt", [0, 1, 3, 4])
def test_rows_with_a_prompt_of_any_length(prompt: int) -> None:
    weight = np.array([0, 1, 1, 1], dtype=np.float32)
    got = pickle.loads(pickle.dumps(TrainingRow(np.arange(4), {"weight": weight}, prompt)))
    assert got.columns["weight"].tolist() == [0, 1, 1, 1] and got.tokens.tolist() == [0, 1, 2, 3]
