"""The kernels of device_kernels in Triton's interpreter, which works in host memory: what torch does, to the bit."""

import torch

from megatron_rl.resharding.transports import device_kernels
from megatron_rl.resharding.transports.device_hash import PERIOD, device_hashes, hash_keys
from megatron_rl.resharding.transports.device_kernels import Runs, period_sums

CPU = torch.device("cpu")


def by_torch(tensor: torch.Tensor, keys: torch.Tensor) -> list[int]:
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
    numbers = tensor.view(-1).view(kinds[tensor.element_size()]).long()
    return [int((part * keys[: len(part)]).sum()) for part in numbers.split(len(keys))]


def sums_are_torchs() -> None:
    keys = hash_keys(CPU)[: 4 * device_kernels.SUM_TILE]
    tensors = [
        torch.randn(len(keys) + 77).bfloat16(),
        torch.randn(5),
        torch.randn(300, 7).to(torch.float8_e4m3fn),
        torch.randn(2 * len(keys) + 3).bfloat16()[3:],
        *torch.randn(device_kernels.TOGETHER + 1, 11).unbind(),
        torch.full((len(keys),), -torch.inf),
    ]
    assert [s.tolist() for s in period_sums(tensors, keys)] == [by_torch(t, keys) for t in tensors]


def runs_arrive_and_nothing_else_changes() -> None:
    source = torch.randint(0, 256, (3_000_000,), dtype=torch.uint8)
    landed, expected = torch.full_like(source, 7), torch.full_like(source, 7)
    runs = [(0, 16, 1_500_000), (1_500_001, 1_600_000, 7), (1_600_004, 1_700_008, 400_000), (2_100_002, 2_200_002, 6)]
    runs += [(2_500_001, 2_600_001, 1)]
    for read, write, size in runs:
        expected[write : write + size] = source[read : read + size]
    addresses = [(source.data_ptr() + read, landed.data_ptr() + write, size) for read, write, size in runs]
    Runs(addresses, CPU).copy()
    assert torch.equal(landed, expected)


def hashes_are_the_same() -> None:
    """``device_hashes`` with the kernels, as on a GPU, and without; contiguous boxes, columns, and another dtype."""
    from megatron_rl.resharding.transports import device_hash

    matrix = torch.randn(40, PERIOD // 20)
    boxes = [matrix, matrix[:, 3:900], torch.randn(9).bfloat16(), matrix[0]]
    dtypes = [torch.float32, torch.float32, torch.bfloat16, torch.bfloat16]
    keys = hash_keys(CPU)
    without = device_hashes(boxes, dtypes, keys)
    device_hash.device_kernels = lambda device: device_kernels  # type: ignore[assignment]
    assert device_hashes(boxes, dtypes, keys).tolist() == without.tolist()


if __name__ == "__main__":
    torch.manual_seed(0)
    sums_are_torchs()
    runs_arrive_and_nothing_else_changes()
    hashes_are_the_same()
