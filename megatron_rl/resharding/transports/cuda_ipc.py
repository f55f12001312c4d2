"""Weights between the GPU processes of one machine: destinations read the sources' live parameters in GPU memory.

What needs a GPU is ``offer`` and ``DeviceMemory.open``; copies and hashes run on any device.

A source offers every storage of its parameters once, by the handle with which CUDA lets another process map it; a
destination opens each handle once. A swap is then a few launches on one stream and one wait for them: copies within
one GPU that are one run of bytes go through ``device_kernels``, the others by dtype through ``torch._foreach_copy_``.
Both sides hash on their device (``device_hash``). Sources must have synchronised their device before a destination is
told to pull, as their streams are not known to it.
"""

import os
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch

from megatron_rl.errors import SwapError
from megatron_rl.resharding.execute import box, flat
from megatron_rl.resharding.layout import merged
from megatron_rl.resharding.plan import Copy, Plan
from megatron_rl.resharding.transports.device_hash import (
    Hashes,
    device_hashes,
    device_kernels,
    hash_keys,
    hashes_of,
    in_runs,
    row_offsets,
)
from megatron_rl.resharding.transports.shared_memory import Place
from megatron_rl.resharding.transports.transport import Dtypes, Owned

POLL = 1e-4  # seconds between two looks whether a batch is done


@dataclass(frozen=True)
class Handle:
    """One storage in GPU memory, as another process can map it."""

    gpu: str  # its UUID: processes may number their GPUs differently
    size: int  # bytes
    content: tuple[Any, ...]  # what torch's _share_cuda_ says after the device


@dataclass(frozen=True)
class DeviceMemory:
    """What readers need to know about one rank's parameters (picklable).

    Torch counts one reader per handle, to know when an owner that has let go of a storage may use its memory again.
    That count is wrong here, where a new engine reads by the handles of the last one, and does not matter: a rank
    keeps its parameters as long as it lives.
    """

    pid: int
    handles: tuple[Handle, ...]
    places: dict[str, Place]  # by local name

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """By local name."""
        return {name: place.shape for name, place in self.places.items()}

    def open(self) -> dict[str, torch.Tensor]:
        """1-D views of the parameters by local name. Raises SwapError naming what cannot be mapped."""
        for name, place in self.places.items():
            end = place.offset + prod(place.shape) * place.dtype.itemsize
            if end > self.handles[place.buffer].size:
                raise SwapError(f"Parameter {name} of process {self.pid} ends behind the memory that it offers.")
        storages = [_open(self.pid, handle) for handle in self.handles]
        views = {}
        for name, place in self.places.items():
            whole = torch.empty(0, dtype=place.dtype, device=storages[place.buffer].device)
            at = place.offset // place.dtype.itemsize
            views[name] = whole.set_(storages[place.buffer], at, (prod(place.shape),), (1,))
        return views


def offer(parameters: Mapping[str, torch.Tensor]) -> DeviceMemory:
    """The parameters (contiguous, on GPUs) as other processes can map them, while this one keeps them.

    Raises ValueError for a tensor that is not in GPU memory.
    """
    storages: dict[int, tuple[int, torch.UntypedStorage]] = {}  # many parameters may lie in one
    places = {}
    for name, tensor in parameters.items():
        if tensor.device.type != "cuda" or not tensor.is_contiguous():
            raise ValueError(f"parameter {name} on {tensor.device} cannot be offered: contiguous CUDA tensors can")
        storage = tensor.untyped_storage()
        index, _ = storages.setdefault(storage._cdata, (len(storages), storage))
        offset = int(tensor.storage_offset()) * tensor.element_size()
        places[name] = Place(index, offset, tuple(tensor.shape), tensor.dtype)
    handles = []
    for _, storage in storages.values():
        device, *content = storage._share_cuda_()
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        handles.append(Handle(uuid, storage.nbytes(), tuple(content)))
    return DeviceMemory(os.getpid(), tuple(handles), places)


def _open(pid: int, handle: Handle) -> torch.UntypedStorage:
    torch.cuda.init()
    visible = [str(torch.cuda.get_device_properties(i).uuid) for i in range(torch.cuda.device_count())]
    if handle.gpu not in visible:
        raise SwapError(
            f"GPU {handle.gpu}, where process {pid} keeps weights, is hidden from this process: let both see all GPUs "
            "of the machine (CUDA_VISIBLE_DEVICES, no --gpus-per-task)."
        )
    try:
        return torch.UntypedStorage._new_shared_cuda(visible.index(handle.gpu), *handle.content)
    except RuntimeError as error:
        raise SwapError(
            f"The GPU memory of process {pid} cannot be mapped: {str(error).splitlines()[0]}. Containers must share "
            "their IPC and PID namespaces (--ipc, --pid); else set rollout.sglang.transport=gloo."
        ) from error


class Batch(NamedTuple):
    """Views that are copied by one call."""

    sources: list[torch.Tensor]
    destinations: list[torch.Tensor]


def make_batches(
    copies: Sequence[Copy],
    sources: Mapping[tuple[int, str], torch.Tensor],
    destinations: Mapping[str, torch.Tensor],
) -> list[Batch]:
    """Copies that torch can run together: of one pair of devices and dtypes, and contiguous on both sides or not.

    ``sources`` by (rank, local name) and ``destinations`` by local name are 1-D. Raises SwapError naming a tensor that
    a source does not offer, or not as long as the plan says.
    """
    found: dict[tuple[Any, ...], Batch] = defaultdict(lambda: Batch([], []))
    for c in copies:
        held, wanted = sources.get((c.source_rank, c.source)), destinations[c.destination]
        last = c.source_offset + sum((n - 1) * step for n, step in zip(c.shape, c.source_strides, strict=True))
        if held is None or last >= held.numel():
            raise SwapError(
                f"Trainer rank {c.source_rank} does not offer all of {c.source}, where tensor {c.tensor} lies."
            )
        shape, (read, write) = merged(c.shape, c.source_strides, c.destination_strides)
        source, place = box(held, shape, read, c.source_offset), box(wanted, shape, write, c.destination_offset)
        whole = source.is_contiguous() and place.is_contiguous()
        batch = found[held.device, wanted.device, held.dtype, wanted.dtype, whole]
        batch.sources.append(source)
        batch.destinations.append(place)
    return list(found.values())


def split_runs(batches: Sequence[Batch]) -> tuple[list[Batch], np.ndarray]:
    """What is left to torch; and of copies within one GPU that are runs on both sides, the addresses and bytes."""
    left, runs = [], [np.empty((0, 3), dtype=np.int64)]
    for batch in batches:
        source, place = batch.sources[0], batch.destinations[0]  # alike in all of a batch
        others = Batch([], [])
        for pair in zip(*batch, strict=True):
            if source.device == place.device and source.dtype == place.dtype and all(map(in_runs, pair)):
                runs.append(_runs(*pair))
            else:
                others.sources.append(pair[0])
                others.destinations.append(pair[1])
        if others.sources:
            left.append(others)
    return left, np.concatenate(runs)


def _runs(source: torch.Tensor, place: torch.Tensor) -> np.ndarray:
    """Addresses to read and to write, and bytes (int64 [n, 3]), of two boxes of one shape that are runs."""
    if source.is_contiguous() and place.is_contiguous():
        return np.array([(source.data_ptr(), place.data_ptr(), source.nbytes)], dtype=np.int64)
    width, length = source.element_size(), source.shape[-1]
    begins = [t.data_ptr() + width * row_offsets(t) for t in (source, place)]
    return np.stack([*begins, np.full(len(begins[0]), width * length)], 1)


class Batched:
    """The ``Inbound`` end over tensors that this process can address, on any device: few calls for all copies.

    ``sources`` and ``destinations`` as for ``make_batches``, the latter on one device. ``timeout``: seconds that a GPU
    may take for a pull.
    """

    def __init__(
        self,
        copies: Sequence[Copy],
        sources: Mapping[tuple[int, str], torch.Tensor],
        destinations: Mapping[str, torch.Tensor],
        timeout: float = 300.0,
    ) -> None:
        self.timeout, self._closed = timeout, False
        self._batches = make_batches(copies, sources, destinations)
        self._runs: Any = None
        self._mapped = dict(sources)  # runs are addresses: what lies there stays mapped as long as this is held
        device = next(iter(destinations.values())).device
        if kernels := device_kernels(device):
            self._batches, runs = split_runs(self._batches)
            self._runs = kernels.Runs(runs, device)
        landed = []
        for c in copies:
            shape, (steps,) = merged(c.shape, c.destination_strides)
            landed.append(box(destinations[c.destination], shape, steps, c.destination_offset))
        self._keys = hash_keys(device)
        self._landed = Hashes(landed, [place.dtype for place in landed], self._keys)

    def pull(self, version: int) -> np.ndarray:
        """Copy, hash what landed (``device_hash``), read again from the destinations, and wait for both."""
        if self._closed:
            raise SwapError(f"Version {version} cannot be read: this end was closed.")
        try:
            self.copy()
            sums = self._landed.begin()
            self._wait(version)
            return self._landed.finish(sums)
        except SwapError:
            raise
        except RuntimeError as error:
            raise SwapError(f"Version {version} was not copied: {str(error).splitlines()[0]}.") from error

    @torch.no_grad()
    def copy(self) -> None:
        """Begin all copies on the current stream."""
        if self._runs is not None:
            self._runs.copy()
        for batch in self._batches:
            torch._foreach_copy_(batch.destinations, batch.sources, non_blocking=True)

    def digest(self, tensor: torch.Tensor) -> int:
        """The hash of one tensor on the device of the destinations."""
        return int(device_hashes([tensor], [tensor.dtype], self._keys)[0])

    def close(self) -> None:
        """Let go of the sources."""
        self._batches, self._runs, self._closed = [], None, True
        self._mapped.clear()

    def _wait(self, version: int) -> None:
        if self._keys.device.type != "cuda":
            return
        done, deadline = torch.cuda.Event(), time.monotonic() + self.timeout
        done.record(torch.cuda.current_stream(self._keys.device))
        while not done.query():
            if time.monotonic() > deadline:
                raise SwapError(f"Version {version} was not copied until the deadline of {self.timeout:g} s.")
            time.sleep(POLL)


class CudaIpc(Batched):
    """The ``Inbound`` end that reads GPU memory offered by processes of the same machine (by source rank)."""

    def __init__(
        self,
        copies: Sequence[Copy],
        memories: Sequence[DeviceMemory],
        destinations: Mapping[str, torch.Tensor],
        timeout: float = 300.0,
    ) -> None:
        needed = {c.source_rank for c in copies}
        sources = {(r, n): t for r, m in enumerate(memories) if r in needed for n, t in m.open().items()}
        super().__init__(copies, sources, destinations, timeout)


class HeldOnDevice:
    """The ``Outbound`` end of these: its weights must not change meanwhile. ``dtypes``: see ``source_hashes``."""

    def __init__(self, plan: Plan, rank: int, parameters: Mapping[str, torch.Tensor], dtypes: Dtypes = None) -> None:
        self._indices = np.array(plan.copies_from(rank), dtype=np.int64)
        self._copies = [plan.copies[i] for i in self._indices]
        self._tensors, self._dtypes = {name: flat(p) for name, p in parameters.items()}, dtypes
        self._hashes: Hashes | None = None

    def push(self, version: int) -> Owned:
        """Hash what this rank owns (``device_hash``)."""
        if self._hashes is None:
            self._hashes = hashes_of(self._copies, self._tensors, self._dtypes)
        return self._indices, self._hashes.finish(self._hashes.begin())

    def close(self) -> None:
        """Nothing to let go of."""
