"""A hash of tensors that is computed where they lie, by torch or on a GPU by a kernel, and is equal on every device.

xxh3 would have to bring every byte of a GPU's weights to the host. This one is linear: element i, as an integer, times
key i, summed modulo 2**64 over every 2**18 elements; xxh3 of those sums is the hash. Keys are odd and differ with the
position, so one wrong element always changes its sum, and exchanged elements, rows or halves change theirs; other
differences escape by chance, with a probability of about 2**-32 at most (multilinear hashing: Carter and Wegman 1979;
Lemire and Kaser, "Strongly universal string hashing is fast", 2014). How a tensor is cut does not matter.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np
import torch
import xxhash

from megatron_rl.resharding.execute import bands, box
from megatron_rl.resharding.layout import merged
from megatron_rl.resharding.plan import Copy
from megatron_rl.system import machine

PERIOD = 1 << 18  # elements that share one sum
SHORTEST = 256  # bytes of a run that has an entry of its own in a kernel's table, where a box has several
LIMIT = 4 << 20  # bytes looked at together; their products need up to eight times as many
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}  # elements as they lie, whatever they mean


@cache
def hash_keys(device: torch.device) -> torch.Tensor:
    """The keys (int64 [PERIOD], odd): the same everywhere, for a bit generator's raw numbers never change."""
    return torch.from_numpy((np.random.Philox(key=0).random_raw(PERIOD) | 1).view(np.int64)).to(device)


class Hashes:
    """Boxes whose hashes are taken again and again, where they lie."""

    def __init__(self, boxes: Sequence[torch.Tensor], dtypes: Sequence[torch.dtype], keys: torch.Tensor) -> None:
        """``boxes``: views of any strides, on the device of ``keys``; hashed are their elements as numbers of
        ``dtypes``, in row-major order."""
        self._keys = keys
        counts = [-(-box.numel() // PERIOD) for box in boxes]
        self._starts = [0, *np.cumsum(counts, dtype=np.int64).tolist()]
        self._left: list[tuple[torch.Tensor, torch.dtype, int, int]] = []  # torch's: their sums from, to
        self._kernels: list[Any] = []
        self._held = list(boxes)  # kernels know addresses only: what lies there stays
        kernels = device_kernels(keys.device)
        runs: dict[int, list[np.ndarray]] = defaultdict(list)
        for held, dtype, start, count in zip(boxes, dtypes, self._starts, counts, strict=False):
            if kernels is not None and held.dtype == dtype and in_runs(held):
                runs[held.element_size()].append(_pieces(held, start))
            else:
                self._left.append((held, dtype, start, start + count))
        for width, parts in runs.items():
            assert kernels is not None
            self._kernels.append(kernels.Sums(np.concatenate(parts), width, keys))

    @torch.no_grad()
    def begin(self) -> torch.Tensor:
        """Begin to take the sums (int64, on the device) on the current stream."""
        sums = torch.zeros(self._starts[-1], dtype=torch.int64, device=self._keys.device)
        for kernel in self._kernels:
            kernel.add(sums)
        for held, dtype, start, end in self._left:
            _add(held, dtype, self._keys, sums[start:end])
        return sums

    def finish(self, sums: torch.Tensor) -> np.ndarray:
        """The uint64 hash of every box; waits for ``begin``'s sums."""
        found, cuts = sums.cpu().numpy(), pairwise(self._starts)
        return np.array([xxhash.xxh3_64_intdigest(found[i:j].data) for i, j in cuts], dtype=np.uint64)


def device_hashes(boxes: Sequence[torch.Tensor], dtypes: Sequence[torch.dtype], keys: torch.Tensor) -> np.ndarray:
    """The uint64 hash of each box's elements, as ``Hashes`` takes it, once."""
    hashes = Hashes(boxes, dtypes, keys)
    return hashes.finish(hashes.begin())


def in_runs(box: torch.Tensor) -> bool:
    """Whether a box is one run of elements, or of runs that are long enough for an entry each in a kernel's table."""
    return box.is_contiguous() or (box.stride(-1) == 1 and box.shape[-1] * box.element_size() >= SHORTEST)


def row_offsets(box: torch.Tensor) -> np.ndarray:
    """Where the rows (along the last dimension) of a box begin, in elements from its first one, in their order."""
    offsets = np.zeros(1, dtype=np.int64)
    for extent, step in zip(box.shape[:-1], box.stride()[:-1], strict=True):
        offsets = (offsets[:, None] + np.arange(extent) * step).reshape(-1)
    return offsets


def _pieces(box: torch.Tensor, start: int) -> np.ndarray:
    """Address, elements, key and sum (int64 [n, 4]) of a box's runs, cut where its periods end; its sums from ``start``
    on."""
    offsets = np.zeros(1, dtype=np.int64) if box.is_contiguous() else row_offsets(box)
    length = box.numel() // len(offsets)
    begins = np.arange(len(offsets)) * length  # of the runs, in the box's order
    cuts = np.unique(np.concatenate([begins, np.arange(0, box.numel(), PERIOD)]))
    counts = np.diff(cuts, append=box.numel())
    run, inside = np.divmod(cuts, length)
    addresses = box.data_ptr() + (offsets[run] + inside) * box.element_size()
    return np.stack([addresses, counts, cuts % PERIOD, start + cuts // PERIOD], 1)


@cache
def device_kernels(device: torch.device) -> ModuleType | None:
    """The kernels for a GPU, where Triton is there (CUDA builds of torch bring it); None: torch does the work."""
    if device.type != "cuda" or machine.installed("triton") is None:
        return None
    from megatron_rl.resharding.transports import device_kernels as kernels

    return kernels


def hashes_of(
    copies: Sequence[Copy],
    sources: Mapping[str, torch.Tensor],
    dtypes: Mapping[str, torch.dtype] | torch.dtype | None = None,
) -> Hashes:
    """The hashes that ``execute.source_hashes`` takes, of tensors on one device."""
    boxes, kinds = [], []
    for c in copies:
        shape, (steps,) = merged(c.shape, c.source_strides)
        boxes.append(box(sources[c.source], shape, steps, c.source_offset))
        wanted = dtypes[c.destination] if isinstance(dtypes, Mapping) else dtypes
        kinds.append(wanted or boxes[-1].dtype)
    return Hashes(boxes, kinds, hash_keys(next(iter(sources.values())).device))


def _add(box: torch.Tensor, dtype: torch.dtype, keys: torch.Tensor, sums: torch.Tensor) -> None:
    position = 0
    for part in bands(tuple(box.shape), dtype.itemsize, LIMIT):
        numbers = box[part].to(dtype).contiguous().view(-1).view(_INTEGERS[dtype.itemsize])
        while len(numbers):
            first, inside = divmod(position, PERIOD)
            rows = max(len(numbers) // PERIOD, 1) if inside == 0 else 1
            width = PERIOD if rows > 1 else min(PERIOD - inside, len(numbers))
            products = numbers[: rows * width].view(rows, width) * keys[inside : inside + width]
            sums[first : first + rows] += products.sum(1)
            numbers, position = numbers[rows * width :], position + rows * width
