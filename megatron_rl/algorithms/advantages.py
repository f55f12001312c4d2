"""Rewards to advantages: numpy in float64, on the host, before a batch is built."""

import numpy as np


def group_advantages(rewards: np.ndarray, std: str = "sample", eps: float = 1e-6) -> np.ndarray:
    """GRPO advantages (arXiv 2402.03300, eq. 4): (r - mean) / (std + eps) inside each group.

    rewards: [groups, size], size >= 2. std: "sample" divides by n - 1 as verl does, "population" by n.
    Returns float64 [groups, size]; a group whose rewards are all equal gets exactly 0.
    """
    rewards = np.asarray(rewards, dtype=np.float64)
    if rewards.ndim != 2 or rewards.shape[1] < 2:
        raise ValueError(f"rewards must be [groups, size] with size >= 2, not {list(rewards.shape)}")
    if std not in ("sample", "population"):
        raise ValueError(f"std is {std!r}; it must be sample or population")
    # Subtracting a member first makes equal rewards exactly 0: the mean of n equal floats can be off by an ulp.
    shifted = rewards - rewards[:, :1]
    centred = shifted - shifted.mean(axis=1, keepdims=True)
    deviation = shifted.std(axis=1, ddof=1 if std == "sample" else 0, keepdims=True)
    return centred / (deviation + eps)
