"""The kernel of quantise_kernels in Triton's interpreter, which works in host memory: the bits of torch's operations.

Run by test_fp8.py as a process of its own, with TRITON_INTERPRET=1.
"""

import torch

from megatron_rl.resharding import quantise, quantise_kernels
from megatron_rl.resharding.layout import Layout, ParallelSizes
from megatron_rl.resharding.layouts.fp8 import quantised_names
from megatron_rl.resharding.layouts.megatron import megatron_layout
from megatron_rl.resharding.quantise import ShardQuantiser
from tests.resharding.layouts.test_fp8 import MODEL
from tests.resharding.reference import Tensors, hf_tensors, megatron_shards

WHOLE = MODEL | {"hidden_size": 256, "head_dim": 64, "intermediate_size": 384}  # tiles end where shards do
CPU = torch.device("cpu")


def offers(layout: Layout, shards: list[Tensors], names: set[str], kernels: bool) -> list[Tensors]:
    """What every rank offers at its second swap, in the memory of the first; the exchange of maxima is played in one
    process: all give, then all take."""
    quantise.quantise_kernels = lambda device: quantise_kernels if kernels else None  # type: ignore[assignment]
    ranks = [ShardQuantiser(layout, rank, names) for rank in range(len(shards))]
    vectors: list[torch.Tensor] = []
    first = [
        rank({name: 3 * t for name, t in shard.items()}, lambda vector: None)
        for rank, shard in zip(ranks, shards, strict=True)
    ]
    for rank, shard, into in zip(ranks, shards, first, strict=True):
        rank(shard, lambda vector: vectors.append(vector.clone()), into)
    largest = torch.stack(vectors).amax(0) if vectors else torch.empty(0)
    second = []
    for rank, shard, into in zip(ranks, shards, first, strict=True):
        second.append(rank(shard, lambda vector: vector.copy_(largest), into))
        assert all(t is into[n] for n, t in second[-1].items() if n not in shard or t.dtype == torch.float8_e4m3fn)
    return second


def models_are_torchs() -> None:
    for config, tensor, dtype in (
        (MODEL, 1, torch.bfloat16),  # tiles that the tensors' edges cut
        (MODEL, 2, torch.float32),  # tiles that ranks share
        (WHOLE, 1, torch.bfloat16),
        (WHOLE, 2, torch.float16),
    ):
        sizes, names = ParallelSizes(tensor=tensor), quantised_names(config)
        layout = megatron_layout(config, sizes)
        shards = megatron_shards(hf_tensors(config, tags=False), config, sizes)
        shards = [{name: (0.02 * t).to(dtype) for name, t in shard.items()} for shard in shards]
        by_kernels, by_torch = (offers(layout, shards, names, kernels) for kernels in (True, False))
        for found, wanted in zip(by_kernels, by_torch, strict=True):
            assert found.keys() == wanted.keys() and any(t.dtype == torch.float8_e4m3fn for t in found.values())
            for name, t in wanted.items():
                assert found[name].shape == t.shape and found[name].is_contiguous(), name
                assert torch.equal(found[name].view(-1).view(torch.uint8), t.view(-1).view(torch.uint8)), name


def by_kernel(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    shape = weight.shape[0], weight.shape[1]
    matrix = quantise_kernels.matrix(shape, weight.stride(), 0, (0, 0), shape)
    at = quantise_kernels.Numbers(0, matrix.grid[1])
    tiles = quantise_kernels.Tiles([matrix], [False], [at], weight.dtype, CPU)
    short, scales = torch.zeros(shape, dtype=torch.float8_e4m3fn), torch.empty(matrix.grid)
    tiles.quantise(tiles.addresses([(weight.data_ptr(), short.data_ptr())], scales.data_ptr(), 0))
    return short, scales


def every_number_is_rounded_as_torch_does() -> None:
    """Quotients at and beside every e4m3 number and every middle between two, of both signs, with several scales."""
    numbers = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    numbers = numbers[numbers.isfinite()].sort().values
    points = torch.cat([numbers, (numbers[1:] + numbers[:-1]) / 2])
    points = torch.cat([points, torch.nextafter(points, points + 1), torch.nextafter(points, points - 1)])
    points = points.clamp(-448, 448)
    for scale in (1.0, 2.0**-90, 0.3, 448.0):
        weight = torch.zeros(128, 128)
        weight.view(-1)[: len(points)] = points * scale
        weight[-1, -1] = 448.0 * scale
        found, wanted = by_kernel(weight), quantise.quantise_blockwise(weight)
        assert torch.equal(found[0].view(torch.uint8), wanted[0].view(torch.uint8)) and torch.equal(found[1], wanted[1])


def what_is_no_number_stays_visible() -> None:
    weight = torch.randn(300, 257)
    weight[0, 0], weight[140, 130], weight[299, 256] = torch.nan, torch.inf, -torch.inf
    weight[128:256, :128] = 0.0
    (short, scales), (wanted, of_torch) = by_kernel(weight), quantise.quantise_blockwise(weight)
    assert torch.equal(scales.isnan(), of_torch.isnan()) and scales.isnan().sum() == 3
    assert torch.equal(short.float().isnan(), wanted.float().isnan())
    sound = ~wanted.float().isnan()
    assert torch.equal(short.view(torch.uint8)[sound], wanted.view(torch.uint8)[sound])
    assert torch.equal(scales.nan_to_num(), of_torch.nan_to_num())


if __name__ == "__main__":
    torch.manual_seed(0)
    every_number_is_rounded_as_torch_does()
    what_is_no_number_stays_visible()
    models_are_torchs()
