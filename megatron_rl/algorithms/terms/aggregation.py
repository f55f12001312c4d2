"""Token losses to one loss: weights fixed before the mini-batch is cut.

The loss of a mini-batch is ``sum(weight * token_loss)``. The weights are computed once over all of its
sequences, so micro-batch size, packing and data parallelism only regroup the terms of that sum.
"""

from collections.abc import Sequence

import numpy as np

SUMS = ("seq-mean-token-sum", "seq-mean-token-sum-norm")  # whose weights do not add up to 1


def token_weights(lengths: Sequence[int], mode: str, constant: int = 1) -> np.ndarray:
    """The weight of each trained token of each sequence of a mini-batch.

    lengths: trained tokens per sequence, over all data-parallel ranks. mode: "token-mean" (DAPO) gives every
    token 1 / total; "seq-mean-token-mean" (GRPO) gives a token of sequence i 1 / (sequences * lengths[i]);
    "seq-mean-token-sum" 1 / sequences; "seq-mean-token-sum-norm" (Dr. GRPO) 1 / (sequences * constant).
    A sequence of length 0 has weight 0 and counts neither as a token nor as a sequence.
    Returns float64 [sequences]; sum(weights * lengths) is 1 for the means unless nothing is trained.
    """
    counts = np.asarray(lengths, dtype=np.int64)
    trained = counts > 0
    if mode == "token-mean":
        divisor = np.full(counts.shape, counts.sum())
    elif mode == "seq-mean-token-mean":
        divisor = trained.sum() * counts
    elif mode in SUMS:
        divisor = np.full(counts.shape, trained.sum() * (constant if mode == SUMS[1] else 1))
    else:
        raise ValueError(f"aggregation is {mode!r}; it must be token-mean, seq-mean-token-mean or {' or '.join(SUMS)}")
    return np.divide(1.0, divisor, out=np.zeros(counts.shape), where=trained)
