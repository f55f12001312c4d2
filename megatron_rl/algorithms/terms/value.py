"""What a critic learns: values [tokens] towards returns, as weighted sums (``objectives``)."""

import torch

from megatron_rl.algorithms.algorithm import Loss

_MOMENTS = ("value_error", "value_error_square", "return_mean", "return_square")


def value_loss(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, weights: torch.Tensor, clip: float
) -> Loss:
    """sum(weights * 0.5 max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2)), as verl's ``compute_value_loss``.

    All float32 [tokens]; old_values, returns and weights are constants. ``clip``: c, in units of the return; how far a
    value moves from what it was before the first update on the rollout while that lowers the loss.

    Metrics (detached scalars): value_loss, value_clip_fraction, value_mean, and the moments of which
    ``explained_variance`` makes that.
    """
    bounded = torch.clamp(values, old_values - clip, old_values + clip)
    plain, clipped = (values - returns).square(), (bounded - returns).square()
    loss = 0.5 * (weights * torch.maximum(plain, clipped)).sum()
    value, error = values.detach(), returns - values.detach()
    terms = {
        "value_clip_fraction": (clipped > plain).to(value.dtype),
        "value_mean": value,
        "value_error": error,
        "value_error_square": error.square(),
        "return_mean": returns,
        "return_square": returns.square(),
    }
    return loss, {"value_loss": loss.detach()} | {name: (weights * term).sum() for name, term in terms.items()}


def explained_variance(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics with the moments of ``value_loss``, whose weights add up to 1, made into ``value_explained``.

    value_explained = 1 - Var(R - V) / Var(R): 1 for values that say what comes, 0 for a constant; 0 where all returns
    are equal.
    """
    error, square, mean, total = (metrics[name] for name in _MOMENTS)
    spread = total - mean**2
    rest = {name: value for name, value in metrics.items() if name not in ("value_error", "value_error_square")}
    rest.pop("return_square")
    return rest | {"value_explained": 1 - (square - error**2) / spread if spread > 1e-12 else 0.0}
