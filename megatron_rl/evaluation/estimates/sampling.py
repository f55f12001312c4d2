"""What several completions of a question say about one, or about the best of k."""

from collections.abc import Sequence
from math import comb


def avg_at_k(correct: Sequence[float]) -> float:
    """The mean over a question's k completions, each 0 to 1: an unbiased estimate of the accuracy of one."""
    return sum(correct) / len(correct)


def pass_at_k(samples: int, right: int, k: int) -> float:
    """The chance that k of the completions, drawn without replacement, have a right one among them.

    1 - C(samples - right, k) / C(samples, k): unbiased (Chen et al. 2021, arXiv 2107.03374). Raises ValueError unless
    0 <= right <= samples and 1 <= k <= samples.
    """
    if not 0 <= right <= samples or not 1 <= k <= samples:
        raise ValueError(f"pass@{k} of {samples} completions, {right} of them right, is not defined")
    return 1 - comb(samples - right, k) / comb(samples, k)
