"""What a trainer rank offers to rollout engines: its live weights, or a copy that every swap makes anew."""

from collections import Counter
from collections.abc import Mapping
from functools import partial

import torch
import torch.distributed as dist

from megatron_rl.actor import accelerator
from megatron_rl.actor.groups import gather, share
from megatron_rl.actor.trainer import Actor
from megatron_rl.resharding.layout import Layout
from megatron_rl.resharding.layouts.fp8 import quantised_names
from megatron_rl.resharding.quantise import ShardQuantiser
from megatron_rl.resharding.transports.choose import ON_DEVICE
from megatron_rl.resharding.transports.shared_memory import unnamed, unshared
from megatron_rl.system import machine
from megatron_rl.system.machine import SHARED

_ALIGNED = 64  # bytes at whose multiples copies begin: vectors are read whole


class Offered:
    """The tensors (contiguous, by local name) that a ``transport`` takes; their memory stays the same.

    On a CPU they are the live weights, or copies where these find no room to be shared; on a GPU those or, for a
    transport that does not reach into GPU memory, copies in host memory. With ``fp8`` they are block-quantised copies,
    of the actor's ``layout``. Collective.
    """

    def __init__(self, actor: Actor, layout: Layout, transport: str, fp8: bool) -> None:
        self.actor = actor
        self._device = None if not accelerator.on_gpu() or transport in ON_DEVICE else torch.device("cpu")
        names = quantised_names(actor.hf_config)
        self._quantise = ShardQuantiser(layout, dist.get_rank(), names) if fp8 else None
        fresh, live = self._fresh(), set(map(torch.Tensor.data_ptr, actor.parameters().values()))
        self._copied = {n for n, t in fresh.items() if self._device is not None or t.data_ptr() not in live}
        if transport == "shared_memory" and crowded({n: t for n, t in fresh.items() if n not in self._copied}):
            self._copied = set(fresh)
        self.tensors = dict(fresh) | packed({n: t for n, t in fresh.items() if n in self._copied}, self._device)

    def refresh(self) -> None:
        """Let them show the present weights."""
        fresh = self._fresh(self.tensors if self._device is None else None)  # those that stand for FP8 weights, too
        for name in self._copied:
            if fresh[name] is not self.tensors[name]:
                self.tensors[name].copy_(fresh[name])

    def _fresh(self, into: Mapping[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
        live = self.actor.parameters()
        if self._quantise is None:
            return live
        with torch.no_grad():
            return self._quantise(live, partial(dist.all_reduce, op=dist.ReduceOp.MAX), into)


def crowded(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether the ranks of a machine cannot all move theirs into its /dev/shm, which is said then. Collective."""
    needed, free = Counter[str](), dict[str, int]()
    for place, size, room in gather((machine.place(), unshared(tensors), machine.shared_memory())):
        needed[place] += size
        free[place] = room
    full = next((place for place in needed if needed[place] > free[place]), None)
    if full is not None:
        print(
            f"{SHARED} has {free[full] / 1e6:.0f} MB free and the weights need {needed[full] / 1e6:.0f} MB: they are "
            "read from copies in other memory, of the same size.",
            flush=True,
        )
    return bool(share(full is not None))


def packed(tensors: Mapping[str, torch.Tensor], device: torch.device | None = None) -> dict[str, torch.Tensor]:
    """Contiguous copies on a device (None: theirs, of which there is one), all of one dtype in one storage.

    Every storage that other processes read costs its owner a file descriptor, and models have thousands of tensors. On
    a CPU they can map it, and it needs no room in /dev/shm.
    """
    room: Counter[torch.dtype] = Counter()
    starts = {}
    for name, tensor in tensors.items():
        starts[name] = room[tensor.dtype]
        whole = _ALIGNED // tensor.element_size()
        room[tensor.dtype] += -(-tensor.numel() // whole) * whole
    where = {tensor.dtype: device or tensor.device for tensor in tensors.values()}
    buffers = {dtype: _buffer(count, dtype, where[dtype]) for dtype, count in room.items()}
    copies = {}
    for name, tensor in tensors.items():
        place = buffers[tensor.dtype][starts[name] : starts[name] + tensor.numel()]
        copies[name] = place.view(tensor.shape).copy_(tensor.detach())
    return copies


def _buffer(count: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    if device.type != "cpu" or not count:
        return torch.empty(count, dtype=dtype, device=device)
    return torch.empty(0, dtype=dtype).set_(unnamed(count * dtype.itemsize))  # type: ignore[call-overload]
