"""Critical-token DPO (arXiv 2411.19943): replies compared place by place, a rejected token as far as it is critical."""

import torch

from megatron_rl.algorithms.pairs.dpo import preference_loss

CONTRAST = 1.0  # alpha of z = (1 + alpha) z_positive - alpha z_negative, whose softmax says how probable a token is


def critical_loss(
    chosen: torch.Tensor, rejected: torch.Tensor, present: torch.Tensor, beta: float, label_smoothing: float = 0.0
) -> torch.Tensor:
    """``preference_loss`` of every place of every pair, summed; a mean where it is divided by the number of places.

    chosen [pairs, places]: log-ratio to the reference of the chosen reply's token at that place, 0 behind its end.
    rejected: that of the rejected reply's, times 1 - s_t, s_t = softmax(2 z_positive - z_negative)[y_t].
    present: bool, whether either reply has a token there. The authors' train_cdpo.py also averages over places of the
    prompt and of padding: each adds log 2 and has no gradient.
    """
    return preference_loss((chosen - rejected)[present], beta, label_smoothing).sum()
