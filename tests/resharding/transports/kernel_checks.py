"""The kernels of device_kernels in Triton's interpreter, which works in host memory: what torch does, to the bit."""

import numpy as np
import torch

from megatron_rl.resharding.plan import Copy
from megatron_rl.resharding.transports import cuda_ipc, device_hash, device_kernels
from megatron_rl.resharding.transports.device_hash import PERIOD, Hashes, device_hashes, hash_keys
from megatron_rl.resharding.transports.device_kernels import Runs, Sums

CPU = torch.device("cpu")


def by_torch(tensor: torch.Tensor, keys: torch.Tensor, first: int = 0) -> int:
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
    numbers = tensor.view(-1).view(kinds[tensor.element_size()]).long()
    return int((numbers * keys[first : first + len(numbers)]).sum())


def sums_are_torchs() -> None:
    """Runs that begin with the first key and with others, several of one sum, and lengths beside those of a tile."""
    keys = hash_keys(CPU)[: 4 * device_kernels.SUM_TILE]
    for dtype in (torch.float32, torch.bfloat16, torch.float8_e4m3fn):
        tensor = torch.randn(3 * len(keys)).to(dtype)
        tensor[:5] = -448.0
        lengths = [1, 3, len(keys), device_kernels.SUM_TILE, device_kernels.SUM_TILE + 1, 77, 78, 79, 5, 500, 501, 502]
        runs, wanted, at = [], torch.zeros(7, dtype=torch.int64), 0
        for i, length in enumerate(lengths):
            first = 0 if i % 3 else min(11, len(keys) - length)
            part = tensor[at : at + length]
            runs.append((part.data_ptr(), length, first, i % 7))
            wanted[i % 7] += by_torch(part, keys, first)
            at += length
        found = torch.zeros_like(wanted)
        Sums(np.array(runs), tensor.element_size(), keys).add(found)
        assert found.tolist() == wanted.tolist()


def runs_arrive_and_nothing_else_changes() -> None:
    source = torch.randint(0, 256, (3_000_000,), dtype=torch.uint8)
    landed, expected = torch.full_like(source, 7), torch.full_like(source, 7)
    runs = [(0, 16, 1_500_000), (1_500_001, 1_600_000, 7), (1_600_004, 1_700_008, 400_000), (2_100_002, 2_200_002, 6)]
    runs += [(2_500_001, 2_600_001, 1), (2_600_016, 2_700_016, 32 * 2048), (2_700_008, 2_800_024, 8 * 2048)]
    for read, write, size in runs:
        expected[write : write + size] = source[read : read + size]
    addresses = [(source.data_ptr() + read, landed.data_ptr() + write, size) for read, write, size in runs]
    Runs(np.array(addresses), CPU).copy()
    assert torch.equal(landed, expected)


def use_kernels() -> None:
    """As on a GPU."""
    device_hash.device_kernels = lambda device: device_kernels  # type: ignore[assignment]
    cuda_ipc.device_kernels = lambda device: device_kernels  # type: ignore[assignment]


def hashes_are_the_same() -> None:
    """``device_hashes`` with the kernels, as on a GPU, and without."""
    matrix, wide = torch.randn(40, PERIOD // 20), torch.randn(6, 2 * PERIOD + 4000).bfloat16()
    boxes = [
        *(matrix, matrix[:, 3:900], matrix[:, 3:60], torch.randn(9).bfloat16(), matrix[0]),
        *(wide[:, 1 : PERIOD + 77], wide.view(2, 3, -1)[:, 1:, 5:905], wide[1:4], wide.t()),
    ]
    dtypes = [box.dtype for box in boxes]
    dtypes[4] = torch.bfloat16  # another one
    keys = hash_keys(CPU)
    without = device_hashes(boxes, dtypes, keys)
    use_kernels()
    hashes = Hashes(boxes, dtypes, keys)
    for _ in range(2):
        assert hashes.finish(hashes.begin()).tolist() == without.tolist()


def pulls_are_torchs() -> None:
    """Copies of one run, of several on either side or on both, of too short ones, and into another dtype."""
    source, halves = torch.randn(300_000), torch.randn(300_000).bfloat16()

    def copy(name: str, shape: tuple[int, int], read: tuple[int, int], write: tuple[int, int], at: int) -> Copy:
        return Copy("w", (0, 0), shape, 0, name, at, read, 0, name, at + 3, write)

    copies = [
        copy("s", (10, 1000), (1000, 1), (1000, 1), 0),
        copy("s", (10, 1000), (1003, 1), (1000, 1), 20_000),
        copy("s", (10, 1000), (1000, 1), (1300, 1), 40_000),
        copy("s", (10, 1000), (1100, 1), (1200, 1), 60_000),
        copy("s", (10, 7), (8, 1), (9, 1), 80_000),
        copy("s", (70, 100), (1, 70), (100, 1), 100_000),
        copy("h", (10, 1000), (1000, 1), (1000, 1), 0),
        copy("h", (10, 1000), (1001, 1), (1002, 1), 20_000),
    ]
    sources = {(0, "s"): source, (0, "h"): halves}
    wanted = {"s": torch.zeros(300_000), "h": torch.zeros(300_000)}
    landed = {name: t.clone() for name, t in wanted.items()}
    device_hash.device_kernels = cuda_ipc.device_kernels = lambda device: None  # type: ignore[assignment]
    expected = cuda_ipc.Batched(copies, sources, wanted).pull(1)
    use_kernels()
    end = cuda_ipc.Batched(copies, sources, landed)
    assert len(end._batches) < len(copies)
    assert end.pull(1).tolist() == expected.tolist()
    assert all(torch.equal(landed[name], t) for name, t in wanted.items())


if __name__ == "__main__":
    torch.manual_seed(0)
    sums_are_torchs()
    runs_arrive_and_nothing_else_changes()
    hashes_are_the_same()
    pulls_are_torchs()
