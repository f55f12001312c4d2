"""How far a mean over questions, or the difference of two models on the same questions, may be off."""

from collections.abc import Sequence
from fractions import Fraction
from math import comb
from typing import NamedTuple

import numpy as np

LEVEL = 0.95
DRAWS = 10_000  # of a bootstrap
_AT_ONCE = 1 << 22  # indices drawn at a time


class Interval(NamedTuple):
    """A mean and the percentile interval of its bootstrap."""

    mean: float
    low: float
    high: float


class Comparison(NamedTuple):
    """A second model against a first, on the same questions."""

    difference: Interval  # mean of second - first, resampled in pairs
    only_first: int  # questions that the first alone has right
    only_second: int
    p_value: float  # exact McNemar test; 1 where no question tells them apart


def bootstrap(values: Sequence[float], seed: int = 0, draws: int = DRAWS, level: float = LEVEL) -> Interval:
    """The mean of ``values``, one a question, and its interval: questions are resampled with replacement (Efron 1979).

    The same values and seed always give the same interval. Raises ValueError without values.
    """
    if not len(values):
        raise ValueError("there is nothing to resample")
    data, rng = np.asarray(values, dtype=np.float64), np.random.default_rng(seed)
    means, left = [], draws
    while left:
        rows = min(left, max(1, _AT_ONCE // len(data)))
        means.append(data[rng.integers(len(data), size=(rows, len(data)))].mean(axis=1))
        left -= rows
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(data.mean()), float(low), float(high))


def compare(first: Sequence[float], second: Sequence[float], seed: int = 0) -> Comparison:
    """Two models' scores of the same questions, in the same order. A score above one half counts as right in the test.

    Raises ValueError for sequences of different lengths.
    """
    pairs = list(zip(first, second, strict=True))
    lost = sum(a > 0.5 >= b for a, b in pairs)
    won = sum(b > 0.5 >= a for a, b in pairs)
    return Comparison(bootstrap([b - a for a, b in pairs], seed), lost, won, mcnemar(lost, won))


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p-value of McNemar's exact test: of the questions that one model alone has right, either is as likely
    to be the one (a binomial test with one half)."""
    total = only_first + only_second
    tail = sum(comb(total, count) for count in range(min(only_first, only_second) + 1))
    return float(min(Fraction(1), Fraction(2 * tail, 2**total)))
