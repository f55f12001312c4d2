"""What only learning needs, away from the GPU while engines generate on it (``actor.asleep``).

Gradients need no copy: every update begins with zeros. AdamW's moments and float32 weights lie on the host meanwhile,
in pinned memory that is kept. Where the optimiser steps on the model's own bfloat16 weights, these stay: engines read
them.

Torch rounds every piece of pinned memory up to a power of two (``CachingHostAllocator``), which would take a third more
for Qwen3-8B's. So tensors share blocks that are powers of two.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from megatron_rl.actor import accelerator

_ALIGNED = 64  # bytes at whose multiples tensors begin


def rooms(sizes: Sequence[int]) -> tuple[list[tuple[int, int]], list[int]]:
    """Blocks for pieces of these sizes in bytes: of each its block and where it begins there; how long each block is.

    No block is longer than the power of two that holds the largest piece; the largest are placed first, each where it
    fits first.
    """
    padded = [-(-size // _ALIGNED) * _ALIGNED for size in sizes]
    most = 1 << (max(padded, default=1) - 1).bit_length()
    places, ends = [(0, 0)] * len(padded), [0]
    for i in sorted(range(len(padded)), key=lambda i: -padded[i]):
        block = next((b for b, end in enumerate(ends) if end + padded[i] <= most), len(ends))
        ends += [0] * (block == len(ends))
        places[i] = block, ends[block]
        ends[block] += padded[i]
    return places, ends


def room_for(tensors: Sequence[torch.Tensor], dtype: torch.dtype | None = None) -> list[torch.Tensor]:
    """Uninitialised host memory for tensors like these, or like these in ``dtype``; beside a GPU it is pinned."""
    if not accelerator.on_gpu():
        return [torch.empty(t.shape, dtype=dtype or t.dtype) for t in tensors]
    places, ends = rooms([t.numel() * (dtype or t.dtype).itemsize for t in tensors])
    blocks = [torch.empty(end, dtype=torch.uint8, pin_memory=True) for end in ends]
    found = []
    for t, (block, at) in zip(tensors, places, strict=True):
        room = blocks[block][at : at + t.numel() * (dtype or t.dtype).itemsize]
        found.append(room.view(dtype or t.dtype).view(t.shape))
    return found


class Sleeper:
    """Gradients and optimiser state of one model, which go and come back. Its methods may be called twice."""

    def __init__(self, wrapped: list[Any], optimizer: Any) -> None:
        self.buffers = [b for chunk in wrapped for b in (*chunk.buffers, *chunk.expert_parallel_buffers)]
        self.optimizer = optimizer
        self.kept: dict[int, torch.Tensor] = {}  # on the host, by id of the tensor
        self.away: list[tuple[torch.Tensor, torch.device]] = []
        self.sizes: list[int] = []  # bytes of the gradient buffers that are away

    @torch.no_grad()
    def sleep(self) -> None:
        """Give the memory up."""
        if self.sizes:
            return
        self.optimizer.zero_grad()  # what refers to them
        state = list(self._state())
        new = [tensor for tensor in state if id(tensor) not in self.kept]
        self.kept |= {id(tensor): room for tensor, room in zip(new, room_for(new), strict=True)}
        for tensor in state:
            tensor.grad = None  # one with a part on the host keeps those of the other part
            self.away.append((tensor, tensor.device))
            tensor.data = self.kept[id(tensor)].copy_(tensor)
        for buffer in self.buffers:
            storage = buffer.grad_data.untyped_storage()
            self.sizes.append(storage.nbytes())
            storage.resize_(0)

    @torch.no_grad()
    def wake(self) -> None:
        """Have all of it back; gradients are zeros."""
        for buffer, size in zip(self.buffers, self.sizes, strict=False):
            buffer.grad_data.untyped_storage().resize_(size)
            buffer.grad_data.zero_()
        for tensor, device in self.away:
            tensor.data = tensor.data.to(device, copy=True)
        self.sizes, self.away = [], []

    def retire(self) -> None:
        """Have the gradients back for another optimiser, and let go of this one, whose state does not come back."""
        self.away, self.kept, self.optimizer = [], {}, None
        self.wake()

    def _state(self) -> Iterator[torch.Tensor]:
        """Every tensor on the device that is the optimiser's own, once."""
        seen: set[int] = set()
        for each in self.optimizer.chained_optimizers:
            if each.optimizer is None:  # this rank trains none of these weights
                continue
            main = [p for group in getattr(each, "shard_fp32_from_float16_groups", ()) for p in group if p is not None]
            # a checkpoint multiplies Transformer Engine's moments in float16 by their scales
            kept = (each.optimizer.state, getattr(each.optimizer, "_scales", {}))
            states = [t for of in kept for state in of.values() for t in state.values() if torch.is_tensor(t)]
            for tensor in (*main, *states):
                here = tensor.device.type == accelerator.device().type
                if here and tensor.dim() and id(tensor) not in seen:  # steps are numbers, on the host anyway
                    seen.add(id(tensor))
                    yield tensor
