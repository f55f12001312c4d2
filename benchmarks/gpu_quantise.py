"""FP8 block quantisation of a rank's weights on one GPU: python -m benchmarks.gpu_quantise [--dry-run] [--layers 36]

All linear weights of Qwen3-4B's shape in bfloat16, as Megatron keeps them, quantised as a rank offers them to FP8
engines, against a copy that reads and writes as many bytes together (two read and one written are counted as one and a
half copied). ``cut``: the same where every tile is measured first, its maximum exchanged with nobody, and then cast:
what tensors take whose tiles ranks share. Every tensor's bits are compared with those of torch's operations on the GPU,
and the first layer's with the CPU's.
"""

import argparse
import json
from typing import Any

import torch

from benchmarks.gpu_head import DEVICE, ON_GPU, best_seconds
from benchmarks.gpu_shapes import SHAPES
from megatron_rl.resharding import quantise
from megatron_rl.resharding.layout import ParallelSizes
from megatron_rl.resharding.layouts.fp8 import SCALE, quantised_names, scale_shape
from megatron_rl.resharding.layouts.megatron import megatron_layout
from megatron_rl.resharding.quantise import ShardQuantiser


def different(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> int:
    """Bytes that differ among those of the second."""
    wrong = 0
    for name, wanted in other.items():
        a, b = (t.contiguous().view(-1).view(torch.uint8) for t in (one[name].to(wanted.device), wanted))
        wrong += int((a != b).sum())
    return wrong


def kernel_seconds(quantiser: ShardQuantiser, held: dict[str, torch.Tensor]) -> float:
    """Of the launch that quantises all weights."""
    tiles = quantiser._tiles[0]
    kept: list[Any] = []
    run = tiles.quantise
    tiles.quantise = kept.append
    outputs = quantiser(held, lambda vector: vector)
    tiles.quantise = run
    found = best_seconds(lambda: run(kept[0]))
    del outputs
    return found


def copy_seconds(size: int) -> float:
    """Of so many bytes."""
    read, written = (torch.empty(size, dtype=torch.uint8, device=DEVICE) for _ in range(2))
    return best_seconds(lambda: written.copy_(read))


def main() -> None:
    """Print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=36)
    parser.add_argument("--dry-run", action="store_true", help="a tiny shape")
    options = parser.parse_args()
    shape = SHAPES["tiny" if options.dry_run else "qwen3-4b"]
    config = shape | {"num_hidden_layers": 1 if options.dry_run else options.layers, "torch_dtype": "bfloat16"}
    layout, names = megatron_layout(config, ParallelSizes(), fused_norms=True), quantised_names(config)
    torch.manual_seed(0)
    held = {
        name: torch.randn(size, device=DEVICE, dtype=torch.bfloat16).mul_(0.02)
        for name, size in layout.ranks[0].locals.items()
        if "embedding" not in name and "output_layer" not in name
    }
    quantiser = ShardQuantiser(layout, 0, names)
    kernels = quantise.quantise_kernels(torch.device(DEVICE))
    line: dict[str, Any] = {"kernels": kernels is not None, "layers": config["num_hidden_layers"]}
    elements = sum(held[name].numel() for name in {s.local for s in quantiser.segments})
    floor = copy_seconds(elements * 3 // 2)
    exchange = lambda vector: vector  # noqa: E731 (of one rank there is nothing to exchange)
    line |= {"gigabytes_read": round(2 * elements / 1e9, 3), "copy_ms": round(1e3 * floor, 3)}
    made = quantiser(held, exchange)
    whole = best_seconds(lambda: quantiser(held, exchange, made))
    line |= {"whole_ms": round(1e3 * whole, 3), "whole_of_copy": round(floor / whole, 3)}
    if kernels is not None:  # the kernel alone, without its call's preparation
        usual: int = kernels.WARPS
        for warps in (4, 8, 16):
            setattr(kernels, "WARPS", warps)  # noqa: B010
            line[f"kernel_of_copy_{warps}_warps"] = round(floor / kernel_seconds(quantiser, held), 3)
        setattr(kernels, "WARPS", usual)  # noqa: B010
    parted = ShardQuantiser(layout, 0, names)
    parted.cut = {name: scale_shape(layout.tensors[name].shape) for name in layout.tensors if name in names}
    made = parted(held, exchange)
    cut = best_seconds(lambda: parted(held, exchange, made))
    line |= {"cut_ms": round(1e3 * cut, 3), "cut_of_copy": round(floor / cut, 3)}
    fused = quantiser(held, exchange)
    line["bytes_unlike_cut"] = different(parted(held, exchange), fused)
    find, quantise.quantise_kernels = quantise.quantise_kernels, lambda device: None  # type: ignore[assignment]
    line["bytes_unlike_torch"] = different(fused, ShardQuantiser(layout, 0, names)(held, exchange))
    first = megatron_layout(config | {"num_hidden_layers": 1}, ParallelSizes(), fused_norms=True)
    here = {name: t.cpu() for name, t in held.items() if name in first.ranks[0].locals}
    of_cpu = ShardQuantiser(first, 0, quantised_names(config | {"num_hidden_layers": 1}))(here, exchange)
    line["bytes_unlike_cpu"] = different(fused, {n: t for n, t in of_cpu.items() if "layers.0." in n})
    quantise.quantise_kernels = find
    line["scales"] = sum(name.endswith(SCALE) for name in fused)
    device = torch.cuda.get_device_name() if ON_GPU else "CPU"
    print(json.dumps({"benchmark": "gpu_quantise", "device": device} | line), flush=True)


if __name__ == "__main__":
    main()
