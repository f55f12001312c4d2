"""What hardware cannot compute. Imports no torch."""

from megatron_rl.config import Config
from megatron_rl.settings.foresight.hardware import Hardware
from megatron_rl.system import machine

# Compute capability x 10 that Transformer Engine's recipes need (its `fp8.py`); blockwise products came with CUDA 12.9.
_FP8 = {"delayed": (89, "Ada or Hopper"), "tensorwise": (89, "Ada or Hopper"), "blockwise": (90, "Hopper")}


def check_hardware(config: Config, on: Hardware) -> list[str]:
    """Precisions that these GPUs lack, and more ranks and engines than GPUs."""
    found, fp8 = [], config.actor.fp8
    if not on.gpus:
        return []
    if fp8 in _FP8 and on.capability and on.capability < _FP8[fp8][0]:
        found.append(
            f"actor.fp8={fp8} needs a GPU of {_FP8[fp8][1]} or later, and the {on.name} is older: use actor.fp8=none."
        )
    if fp8 == "blockwise" and (cuda := _cuda()) and cuda < (12, 9):
        found.append(
            f"actor.fp8=blockwise needs torch for CUDA 12.9 or later; it is for {cuda[0]}.{cuda[1]}. Use tensorwise."
        )
    if config.rollout.sglang.fp8 and config.rollout.engine == "sglang" and on.capability and on.capability < 89:
        found.append(f"rollout.sglang.fp8=true needs a GPU of Ada or Hopper or later, and the {on.name} is older.")
    return found


def _cuda() -> tuple[int, int] | None:
    """The CUDA that this machine's torch is built for; None of hardware that is elsewhere, or where it does not say."""
    _, _, built = (machine.installed("torch") or "").partition("+cu")
    if machine.elsewhere() or not built.isdecimal() or len(built) < 3:
        return None
    return int(built[:-1]), int(built[-1])
