"""Rewards of pairs of replies (Bradley and Terry 1952; as InstructGPT has it, arXiv 2203.02155, eq. 1)."""

import torch
from torch.nn.functional import logsigmoid


def bradley_terry_loss(chosen: torch.Tensor, rejected: torch.Tensor, margin: float = 0.0) -> torch.Tensor:
    """-log sigmoid(r_chosen - r_rejected - margin) of each pair; all [pairs] (the margin: arXiv 2307.09288, eq. 2)."""
    return -logsigmoid(chosen - rejected - margin)


def reward_metrics(chosen: torch.Tensor, rejected: torch.Tensor) -> dict[str, torch.Tensor]:
    """Sums over the pairs [pairs]; a tie is not right."""
    return {
        "pair_accuracy": (chosen > rejected).sum(),
        "pair_margin": (chosen - rejected).sum(),
        "reward_chosen": chosen.sum(),
        "reward_rejected": rejected.sum(),
    }
