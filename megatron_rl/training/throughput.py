"""What updates compute, in model FLOPs, and what the devices of the ranks could."""

import time
from collections.abc import Iterable

import torch

from megatron_rl.actor import accelerator
from megatron_rl.actor.rows import TrainingRow
from megatron_rl.resharding.families.architecture import Architecture
from megatron_rl.settings.foresight.hardware import of_name
from megatron_rl.settings.foresight.work import row_flops

_SIDE = {"cpu": 512, "cuda": 8192}  # of the matrices whose product is measured where the peak is not known


def update_flops(arch: Architecture, rows: Iterable[TrainingRow]) -> float:
    """Model FLOPs of one update on these rows, each with its whole prompt."""
    return sum(row_flops(arch, len(row) - 1, int((row.columns["weight"][1:] != 0).sum())) for row in rows)


def prompt_flops(arch: Architecture, positions: Iterable[int]) -> float:
    """Of such an update what prompts of so many positions are, which other rows compute (``packing.spared``)."""
    return sum(row_flops(arch, prompt, 0) for prompt in positions)


def peak_flops(dtype: torch.dtype) -> float:
    """FLOP/s that one rank's device can do at most: of a known GPU its dense peak in this dtype, else a product's."""
    if accelerator.on_gpu():
        known = of_name(torch.cuda.get_device_name())
        if known is not None:
            return known.flops_fp32 if dtype == torch.float32 else known.flops
    return _measured(dtype)


def _measured(dtype: torch.dtype) -> float:
    """FLOP/s of a square product on this device, with this process's threads: the best of eight."""
    accelerator.adapt()
    side = _SIDE[accelerator.device().type]
    factor, best = torch.ones(side, side, dtype=dtype, device=accelerator.device()), float("inf")
    for _ in range(8):
        accelerator.synchronize()
        started = time.perf_counter()
        factor @ factor
        accelerator.synchronize()
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best
