"""What must hold of a step before its weights go anywhere."""

from math import isfinite

from megatron_rl.actor import groups
from megatron_rl.algorithms.config import AlgorithmConfig
from megatron_rl.algorithms.mismatch import alarm
from megatron_rl.errors import RunError
from megatron_rl.training.controller import Controller, Elsewhere
from megatron_rl.training.models import Models
from megatron_rl.training.progress import Progress

_LEARNING = ("loss", "grad_norm", "value_loss", "value_grad_norm")  # of the policy, of a critic


def require_finite(
    metrics: dict[str, float], models: Models, controller: Controller | Elsewhere, at: Progress, action: str
) -> None:
    """Keep the batch of a step whose loss or gradient norm is not finite, and end the run or go on without the update.

    ``at`` stands before the step; ``action``: run.not_finite. An update with such a gradient was not made
    (``Actor.update``). Weights that are not finite end the run in any case: nothing can be learned from them any more.
    Collective.
    """
    broken = [name for name in _LEARNING if not isfinite(metrics.get(name, 0.0))]
    weights = models.finite()
    if not broken and weights:
        return
    file = groups.share(controller.keep_batch(at))
    what = " and ".join(f"{name} is {metrics[name]}" for name in broken) or "there are weights that are not finite"
    said = f"step {at.step + 1} of {at.stage}: {what}. Its batch is in {file}"
    if action == "stop" or not weights:
        raise RunError(
            f"{said[0].upper()}{said[1:]}. Nothing of it was swapped or saved; continue from the last checkpoint with "
            "a lower learning rate, or with run.not_finite=skip."
        )
    skipped = metrics.get("skipped_updates", 0) + metrics.get("value_skipped_updates", 0)
    controller.warn(f"{said}; updates left out: {skipped:.0f} (run.not_finite=skip).")


def require_calm(controller: Controller | Elsewhere, at: Progress, action: str) -> None:
    """Warn, or end the run on every rank, at alarms of the last step; ``action``: alarms.action. Collective."""
    for said in groups.share(controller.alarmed()):
        if action == "stop":
            raise RunError(f"Step {at.step} stopped the run (alarms.action=stop): {said}")
        controller.warn(f"step {at.step}: {said}")


def require_agreement(
    metrics: dict[str, float], controller: Controller | Elsewhere, at: Progress, config: AlgorithmConfig
) -> None:
    """Warn, or end the run on every rank, when the engine and the actor disagree."""
    if not (wrong := alarm(metrics, config)):
        return
    if config.mismatch_action == "stop":
        raise RunError(f"Step {at.step} stopped the run (algorithm.mismatch_action=stop): {wrong}")
    controller.warn(f"step {at.step}: {wrong}")
