"""Rewards to advantages inside the groups of completions of one prompt: numpy in float64."""

from collections.abc import Callable

import numpy as np

from megatron_rl.algorithms.algorithm import CreditBatch


def in_groups(batch: CreditBatch, rewards: np.ndarray, advantages: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """``advantages`` of each group's rewards, float64 [samples].

    0 for a completion that stands alone, such as one whose siblings were dropped: there is nothing to compare it with.
    """
    found = np.zeros(len(rewards))
    for group in batch.by_group():
        if len(group) > 1:
            found[group] = advantages(rewards[group])
    return found


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
    shifted = rewards - rewards[:, :1]
    return centred(rewards) / (shifted.std(axis=1, ddof=1 if std == "sample" else 0, keepdims=True) + eps)


def centred(rewards: np.ndarray) -> np.ndarray:
    """r - mean over the last axis (Dr. GRPO, arXiv 2503.20783); exactly 0 where all are equal."""
    # Subtracting a member first makes equal rewards exactly 0: the mean of n equal floats can be off by an ulp.
    shifted = rewards - rewards[..., :1]
    return shifted - shifted.mean(axis=-1, keepdims=True)


def leave_one_out(rewards: np.ndarray) -> np.ndarray:
    """r - mean of the others of the last axis = n / (n - 1) (r - mean) (RLOO, arXiv 2402.14740)."""
    size = rewards.shape[-1]
    return centred(rewards) * (size / (size - 1))
