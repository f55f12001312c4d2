"""A hash of tensors that is computed where they lie, by torch or on a GPU by a kernel, and is equal on every device.

xxh3 would have to bring every byte of a GPU's weights to the host. This one is linear: element i, as an integer, times
key i, summed modulo 2**64 over every 2**18 elements; xxh3 of those sums is the hash. Keys are odd and differ with the
position, so one wrong element always changes its sum, and exchanged elements, rows or halves change theirs; other
differences escape by chance, with a probability of about 2**-32 at most (multilinear hashing: Carter and Wegman 1979;
Lemire and Kaser, "Strongly universal string hashing is fast", 2014). How a tensor is cut does not matter.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from types import ModuleType

import numpy as np
import torch
import xxhash

from megatron_rl.resharding.execute import bands, box
from megatron_rl.resharding.layout import merged
from megatron_rl.resharding.plan import Copy
from megatron_rl.system import machine

PERIOD = 1 << 18  # elements that share one sum
LIMIT = 4 << 20  # bytes looked at together; their products need up to eight times as many
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}  # elements as they lie, whatever they mean


@cache
def hash_keys(device: torch.device) -> torch.Tensor:
    """The keys (int64 [PERIOD], odd): the same everywhere, for a bit generator's raw numbers never change."""
    return torch.from_numpy((np.random.Philox(key=0).random_raw(PERIOD) | 1).view(np.int64)).to(device)


def device_hashes(boxes: Sequence[torch.Tensor], dtypes: Sequence[torch.dtype], keys: torch.Tensor) -> np.ndarray:
    """The uint64 hash of each box's elements, in row-major order, as numbers of its dtype.

    ``boxes``: views of any strides, on the device of ``keys``, which is waited for once.
    """
    whole = [i for i, (box, dtype) in enumerate(zip(boxes, dtypes, strict=True)) if as_it_lies(box, dtype)]
    sums: dict[int, torch.Tensor] = {}
    if whole and (kernels := device_kernels(keys.device)):
        sums = dict(zip(whole, kernels.period_sums([boxes[i] for i in whole], keys), strict=True))
    with torch.no_grad():
        for i, (box, dtype) in enumerate(zip(boxes, dtypes, strict=True)):
            if i not in sums:
                sums[i] = torch.zeros(-(-box.numel() // PERIOD), dtype=torch.int64, device=keys.device)
                _add(box, dtype, keys, sums[i])
    ordered = [sums[i] for i in range(len(boxes))]
    ends = np.cumsum([len(part) for part in ordered], dtype=np.int64)
    found = np.split(torch.cat(ordered).cpu().numpy(), ends)[:-1] if ordered else []  # the rest is empty
    return np.array([xxhash.xxh3_64_intdigest(one.tobytes()) for one in found], dtype=np.uint64)


def as_it_lies(box: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether a box is one run of elements of ``dtype``."""
    return box.dtype == dtype and box.is_contiguous()


@cache
def device_kernels(device: torch.device) -> ModuleType | None:
    """The kernels for a GPU, where Triton is there (CUDA builds of torch bring it); None: torch does the work."""
    if device.type != "cuda" or machine.installed("triton") is None:
        return None
    from megatron_rl.resharding.transports import device_kernels as kernels

    return kernels


def hash_on_device(
    copies: Sequence[Copy],
    sources: Mapping[str, torch.Tensor],
    dtypes: Mapping[str, torch.dtype] | torch.dtype | None = None,
) -> np.ndarray:
    """As ``execute.source_hashes``, of tensors on one device."""
    boxes, kinds = [], []
    for c in copies:
        shape, (steps,) = merged(c.shape, c.source_strides)
        boxes.append(box(sources[c.source], shape, steps, c.source_offset))
        wanted = dtypes[c.destination] if isinstance(dtypes, Mapping) else dtypes
        kinds.append(wanted or boxes[-1].dtype)
    return device_hashes(boxes, kinds, hash_keys(next(iter(sources.values())).device))


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
