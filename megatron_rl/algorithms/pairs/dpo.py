"""Direct preference optimisation (arXiv 2305.18290), a pair's tokens summed up."""

import torch
from torch.nn.functional import logsigmoid


def preference_loss(margins: torch.Tensor, beta: float, label_smoothing: float = 0.0) -> torch.Tensor:
    """-(1 - e) log s(beta m) - e log s(-beta m) of each of ``margins``, in their shape and dtype (arXiv 2305.18290,
    eq. 7; with label smoothing e, where a fraction e of the labels is wrong: ericmitchell.ai/cdpo.pdf, eq. 3).

    margins: the policy's log-ratio to the reference of what is chosen, less that of what is rejected.
    """
    right = logsigmoid(beta * margins)
    return (
        -right if not label_smoothing else (label_smoothing - 1) * right - label_smoothing * logsigmoid(-beta * margins)
    )


def pair_metrics(chosen: torch.Tensor, rejected: torch.Tensor, beta: float) -> dict[str, torch.Tensor]:
    """Sums over the pairs of their implicit rewards, beta times the log-ratio of a whole reply; inputs [pairs]."""
    return {
        "pair_accuracy": (chosen > rejected).sum(),
        "pair_margin": beta * (chosen - rejected).sum(),
        "reward_chosen": beta * chosen.sum(),
        "reward_rejected": beta * rejected.sum(),
    }
