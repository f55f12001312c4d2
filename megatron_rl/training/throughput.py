"""What updates compute, in model FLOPs, and what the devices of the ranks could."""

import time
from collections.abc import Iterable

import torch

from megatron_rl.actor import accelerator
from megatron_rl.actor.rows import TrainingRow
from megatron_rl.resharding.families.architecture import Architecture

# Dense bfloat16 FLOP/s by a part of the GPU's name, as NVIDIA's data sheets have them without sparsity; the first that
# fits. The H200's is the H100 SXM's.
PEAKS = {
    "GB200": 2500e12,
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
}
_SIDE = {"cpu": 512, "cuda": 8192}  # of the matrices whose product is measured where the peak is not known


def row_flops(arch: Architecture, positions: int, trained: int) -> float:
    """Model FLOPs of one sequence's forward and backward pass.

    Megatron's count: two for each element of a matrix and position, causal attention halved, the backward pass twice
    the forward one, nothing for what is computed again. Of experts those that a token goes to; of the output matrix the
    ``trained`` positions alone.
    """
    queries, keys = arch.heads * arch.head_dim, arch.kv_heads * arch.head_dim
    mlp = 3 * arch.hidden * arch.mlp_hidden
    if arch.experts:
        mlp = 3 * arch.hidden * arch.expert_hidden * arch.experts_per_token + arch.hidden * arch.experts
    matrices = arch.layers * (arch.hidden * (2 * queries + 2 * keys) + mlp)
    attention = arch.layers * 2 * queries * positions  # scores, and their product with the values, half of them masked
    head = arch.hidden * (1 if arch.scalar else arch.vocab)
    return 3.0 * (positions * (2 * matrices + attention) + trained * 2 * head)


def update_flops(arch: Architecture, rows: Iterable[TrainingRow]) -> float:
    """Model FLOPs of one update on these rows; prompts count in every row, also where they are computed once."""
    return sum(row_flops(arch, len(row) - 1, int((row.columns["weight"][1:] != 0).sum())) for row in rows)


def peak_flops(dtype: torch.dtype) -> float:
    """FLOP/s that one rank's device can do at most: of a known GPU its dense bfloat16 peak, else a product's."""
    if accelerator.on_gpu():
        name = torch.cuda.get_device_name()
        if known := [peak for part, peak in PEAKS.items() if part in name]:
            return known[0]
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
