"""How long completions are, and whether long ones are better (DeepEnlighten), or whether their length collapses."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from megatron_rl.analysis.completions import Seen, drawn_in_training, spans

BINS = 10
COLLAPSED = 0.5  # of the longest mean of the run: below it the length is said to have collapsed
Of = Literal["tokens", "characters", "think"]


def unit(completions: Sequence[Seen]) -> Of:
    """What a completion's length is told in: tokens where every row has them, else characters."""
    return "tokens" if completions and all(one.tokens is not None for one in completions) else "characters"


def length(one: Seen, of: Of) -> int:
    """Of a completion in tokens or characters, or of its reasoning in characters (``think``)."""
    return int(getattr(one, of) or 0)


def against_score(completions: Sequence[Seen], of: Of) -> dict[str, Any]:
    """Length against the answer's score: ``bins`` and ``line``, of the completions that have a score: of training where
    some have, else of evaluations."""
    scored = [one for one in completions if one.score is not None]
    scored = drawn_in_training(scored) or scored
    x = [float(length(one, of)) for one in scored]
    y = [float(one.score or 0.0) for one in scored]
    return {"count": len(scored), "bins": binned(x, y), "line": regression(x, y)}


def binned(x: Sequence[float], y: Sequence[float], bins: int = BINS) -> list[dict[str, float]]:
    """The mean of y in bins of equal width from the least to the greatest x; each has ``low`` and ``high``, of which
    the last bin has both; a bin without values has no ``mean``."""
    if not x:
        return []
    low, high = min(x), max(x)
    width = (high - low) / bins or 1.0
    at = np.minimum(((np.asarray(x) - low) / width).astype(int), bins - 1)
    sums, counts = np.bincount(at, np.asarray(y), bins), np.bincount(at, minlength=bins)
    return [
        {"low": low + i * width, "high": low + (i + 1) * width, "count": float(counts[i])}
        | ({"mean": float(sums[i] / counts[i])} if counts[i] else {})
        for i in range(bins)
    ]


def regression(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """Ordinary least squares: ``slope``, ``intercept`` and the correlation ``r``; empty where x does not vary."""
    if len(set(x)) < 2:
        return {}
    a, b = np.asarray(x), np.asarray(y)
    a0, b0 = a - a.mean(), b - b.mean()
    slope = float(a0 @ b0 / (a0 @ a0))
    spread = float(np.sqrt((a0 @ a0) * (b0 @ b0)))
    return {
        "slope": slope,
        "intercept": float(b.mean() - slope * a.mean()),
        "r": float(a0 @ b0) / spread if spread else 0.0,
    }


def over_time(completions: Sequence[Seen], of: Of) -> dict[str, list[float]]:
    """Over the steps of training: the mean length and its 10 % and 90 % quantiles, of right and wrong ones too."""
    found: dict[str, list[float]] = {name: [] for name in ("steps", "mean", "low", "high", "right", "wrong")}
    for step, some in spans(list(completions)):
        every = np.array([length(one, of) for one in some], float)
        found["steps"].append(step)
        for name, value in zip(("mean", "low", "high"), (every.mean(), *np.quantile(every, (0.1, 0.9))), strict=True):
            found[name].append(float(value))
        for name, right in (("right", True), ("wrong", False)):
            chosen = [length(one, of) for one in some if one.right is right]
            found[name].append(float(np.mean(chosen)) if chosen else float("nan"))
    return found


def collapse(completions: Sequence[Seen], of: Of) -> dict[str, float]:
    """Whether completions got short: the ``last`` mean of a span over the greatest, its ``peak`` (Temporal Clue)."""
    means = over_time(completions, of)["mean"]
    if not means:
        return {}
    peak = max(means)
    share = means[-1] / peak if peak else 1.0
    return {"first": means[0], "peak": peak, "last": means[-1], "share": share, "collapsed": float(share < COLLAPSED)}


def distribution(groups: dict[str, Sequence[int]], bins: int = 30) -> dict[str, Any]:
    """Shares of several groups' lengths in common bins of equal width: ``edges`` and, by group, ``shares``."""
    every = [value for values in groups.values() for value in values]
    if not every:
        return {"edges": [], "shares": {}}
    low, high = min(every), max(every) + 1
    edges = np.linspace(low, high, min(bins, high - low) + 1)
    shares = {}
    for name, values in groups.items():
        counts = np.histogram(np.asarray(values, float), edges)[0]
        shares[name] = [float(share) for share in counts / max(1, len(values))]
    return {"edges": [float(edge) for edge in edges], "shares": shares}
