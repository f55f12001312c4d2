"""How much of a solution to tell: the accuracy that was seen under hints, as a curve, and its inverse.

SEELE (arXiv 2509.06923, section 4.2): accuracy under a hint of a share p of the solution's steps follows the
three-parameter logistic of item response theory, a(p) = floor + (1 - floor) / (1 + exp(-slope (p + shift))). It is
fitted to what one problem has shown in one step. The paper gives neither bounds nor start of the fit; these are ours.
"""

from collections.abc import Iterable
from functools import lru_cache
from math import floor, log
from typing import NamedTuple

import numpy as np

LOWEST = (0.1, -1.5, 0.0)  # slope, shift, floor
HIGHEST = (50.0, 0.5, 0.999)
START = (10.0, -0.5, 0.05)
STEEP = 45.0  # the slope of the second start
_FIRST, _SECOND = 25, 40  # evaluations from each start

Points = tuple[tuple[float, float], ...]
"""(hint rate, accuracy) of one problem, in the order of the rates, each rate once."""


class Curve(NamedTuple):
    """Accuracy by hint rate."""

    slope: float
    shift: float
    floor: float

    def accuracy(self, rate: float) -> float:
        """Under a hint of so much of the solution."""
        return float(self.floor + (1 - self.floor) / (1 + np.exp(-self.slope * (rate + self.shift))))

    def rate(self, accuracy: float) -> float:
        """Where the curve has this accuracy (below 1), within [0, 1]; 0 where even its floor is as high."""
        if accuracy <= self.floor:
            return 0.0
        return min(max(-self.shift + log((accuracy - self.floor) / (1 - accuracy)) / self.slope, 0.0), 1.0)


def cold_start(steps: int) -> float:
    """The rate that tells all of a solution's steps but the last."""
    return (steps - 1) / steps


def told_steps(rate: float, steps: int) -> int:
    """How many of a solution's steps a rate tells: rate x steps, halves rounded up."""
    return floor(rate * steps + 0.5)


def gather(seen: Iterable[tuple[float, float]]) -> Points:
    """(rate, accuracy) of each round as points: accuracies at one rate are averaged; where nothing is known of no
    hint and of the whole solution, they are taken to have accuracies 0 and 1."""
    at: dict[float, list[float]] = {}
    for rate, accuracy in seen:
        at.setdefault(rate, []).append(accuracy)
    for margin in (0.0, 1.0):
        at.setdefault(margin, [margin])
    return tuple((rate, sum(at[rate]) / len(at[rate])) for rate in sorted(at))


@lru_cache(maxsize=1 << 14)
def fit(points: Points) -> Curve:
    """The curve of least squares, by SciPy's trust region reflective method.

    Often any slope that is steep enough meets what was seen; then the fit creeps along a valley for hundreds of
    evaluations. So one that is not done after 25 goes on from the valley's steep end, and the better of the two counts.
    Problems in which the same was seen share a fit.
    """
    from scipy.optimize import least_squares

    rates, accuracies = np.array(points).T

    def residuals(x: np.ndarray) -> np.ndarray:
        slope, shift, least = x.tolist()
        return least + (1 - least) / (1 + np.exp(-slope * (rates + shift))) - accuracies

    def jacobian(x: np.ndarray) -> np.ndarray:
        slope, shift, least = x.tolist()
        from_half, by = rates + shift, np.empty((len(rates), 3))
        s = 1 / (1 + np.exp(-slope * from_half))
        steepness = (1 - least) * s * (1 - s)
        by[:, 0], by[:, 1], by[:, 2] = steepness * from_half, steepness * slope, 1 - s
        return by

    found = least_squares(residuals, START, jacobian, (LOWEST, HIGHEST), method="trf", max_nfev=_FIRST)
    if found.status == 0:  # not done
        start = (STEEP, found.x[1], found.x[2])
        other = least_squares(residuals, start, jacobian, (LOWEST, HIGHEST), method="trf", max_nfev=_SECOND)
        found = min(found, other, key=lambda result: result.cost)
    return Curve(*map(float, found.x))
