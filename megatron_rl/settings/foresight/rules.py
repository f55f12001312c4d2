"""What hardware cannot compute. Imports no torch."""

from megatron_rl.config import Config
from megatron_rl.settings.foresight.hardware import Hardware
from megatron_rl.settings.foresight.precision import check_precision, check_weights
from megatron_rl.system import machine


def check_hardware(config: Config, on: Hardware) -> list[str]:
    """Precisions that these GPUs lack."""
    if not on.gpus:
        return []
    found = check_precision(config.actor.fp8, on, _cuda()) + check_weights(config.actor.fp8_weights, on)
    if config.rollout.sglang.fp8 and config.rollout.engine == "sglang" and on.capability and on.capability < 89:
        found.append(f"rollout.sglang.fp8=true needs a GPU of Ada or Hopper or later, and the {on.name} is older.")
    return found


def _cuda() -> tuple[int, int] | None:
    """The CUDA that this machine's torch is built for; None of hardware that is elsewhere, or where it does not say."""
    _, _, built = (machine.installed("torch") or "").partition("+cu")
    if machine.elsewhere() or not built.isdecimal() or len(built) < 3:
        return None
    return int(built[:-1]), int(built[-1])
