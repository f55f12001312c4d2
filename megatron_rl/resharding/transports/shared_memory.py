"""A trainer rank's live parameters, readable by other processes of the same machine and user, without a copy.

``publish`` moves the parameters' storages into shared memory in place: every view of them, the optimiser's
included, stays valid. A reader maps /proc/<pid>/fd/<fd>, so the memory has no name that could outlive its owner.
To be moved they need room in /dev/shm; copies in ``unnamed`` memory are shared from the start, and need none.
"""

import mmap
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from megatron_rl.errors import InputError, SwapError
from megatron_rl.system.machine import SHARED, shared_memory

_ALIGNED = 64  # bytes at whose multiples parameters begin in a file


@dataclass(frozen=True)
class Buffer:
    """One shared storage: a file descriptor of its owner, and what identifies the file behind it; or a file."""

    fd: int
    size: int  # bytes
    inode: int
    path: str = ""  # of a file that other machines see too, instead of the descriptor


@dataclass(frozen=True)
class Place:
    """Where a parameter lies."""

    buffer: int  # index into RankMemory.buffers
    offset: int  # bytes
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class RankMemory:
    """What a reader needs to know about one rank's parameters (picklable)."""

    pid: int
    buffers: tuple[Buffer, ...]
    places: dict[str, Place]  # by local name

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """By local name."""
        return {name: place.shape for name, place in self.places.items()}

    def open(self) -> "Mapped":
        """Map the owner's memory for reading. Raises SwapError where it cannot be."""
        return Mapped(self)


def unnamed(size: int) -> torch.UntypedStorage:
    """A storage of ``size`` bytes, zeros, in memory that other processes can map and that has no name anywhere."""
    handle = os.memfd_create("megatron_rl")
    try:
        os.ftruncate(handle, size)
        storage: torch.UntypedStorage = torch.UntypedStorage._new_shared_fd_cpu(handle, size)  # type: ignore[attr-defined]
        return storage
    finally:
        os.close(handle)  # the storage has its own


def unshared(parameters: Mapping[str, torch.Tensor]) -> int:
    """Bytes that ``publish`` would move into /dev/shm."""
    storages = {s._cdata: s for s in (tensor.untyped_storage() for tensor in parameters.values())}
    return sum(storage.nbytes() for storage in storages.values() if not storage.is_shared())


def publish(parameters: Mapping[str, torch.Tensor]) -> RankMemory:
    """Move the storages of these contiguous CPU tensors into shared memory in place, and say where each lies.

    Raw addresses taken before (numpy views included) become stale; torch tensors do not. Publishing twice is free.
    Raises InputError when /dev/shm is too small for them; ValueError for a tensor that is not in host memory.
    """
    storages: dict[int, tuple[int, torch.UntypedStorage]] = {}  # many parameters may lie in one
    places = {}
    for name, tensor in parameters.items():
        if tensor.device.type != "cpu" or not tensor.is_contiguous():
            raise ValueError(f"parameter {name} on {tensor.device} cannot be published: contiguous CPU tensors can")
        storage = tensor.untyped_storage()
        index, _ = storages.setdefault(storage._cdata, (len(storages), storage))
        offset = int(tensor.storage_offset()) * tensor.element_size()
        places[name] = Place(index, offset, tuple(tensor.shape), tensor.dtype)
    if (needed := unshared(parameters)) > (free := shared_memory()):  # a full one fails late and badly
        raise InputError(
            f"{SHARED} has {free / 1e6:.0f} MB free; this rank's share of the weights needs {needed / 1e6:.0f} MB. "
            f"Enlarge it (mount -o remount,size=... {SHARED}; for a container --shm-size) or free some."
        )
    buffers = []
    for _, storage in storages.values():
        fd, size = storage._share_fd_cpu_()
        buffers.append(Buffer(fd, size, os.fstat(fd).st_ino))
    return RankMemory(os.getpid(), tuple(buffers), places)


def store(parameters: Mapping[str, torch.Tensor], path: Path) -> RankMemory:
    """Copies of the parameters (contiguous, in host memory) in a file, for readers on other machines."""
    places, end = {}, 0
    with path.open("wb") as file:
        for name, tensor in parameters.items():
            end = -(-end // _ALIGNED) * _ALIGNED
            places[name] = Place(0, end, tuple(tensor.shape), tensor.dtype)
            file.seek(end)
            file.write(tensor.detach().reshape(-1).view(torch.uint8).numpy().data)
            end += tensor.numel() * tensor.element_size()
        file.truncate(max(end, 1))  # an empty file cannot be mapped
        file.flush()
        os.fsync(file.fileno())
    return RankMemory(os.getpid(), (Buffer(-1, max(end, 1), 0, str(path)),), places)


class Mapped:
    """Another process's parameters: ``tensors`` are read-only 1-D views by local name."""

    def __init__(self, memory: RankMemory) -> None:
        maps = [_map(memory.pid, buffer) for buffer in memory.buffers]
        self.tensors: dict[str, torch.Tensor] = {}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            for name, place in memory.places.items():
                self.tensors[name] = torch.frombuffer(
                    maps[place.buffer], dtype=place.dtype, count=prod(place.shape), offset=place.offset
                )

    def close(self) -> None:
        """Let go of the memory; it is unmapped when no view of it is left."""
        self.tensors.clear()


def _map(pid: int, buffer: Buffer) -> mmap.mmap:
    path = buffer.path or f"/proc/{pid}/fd/{buffer.fd}"
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise SwapError(
            f"The weights of process {pid} cannot be read here ({path}: {error.strerror}): it has ended, or runs in "
            "another container or as another user. Containers must share their PID namespace (--pid); else set "
            "rollout.sglang.transport=gloo."
        ) from error
    try:
        status = os.fstat(fd)
        if not buffer.path and (status.st_ino, status.st_size) != (buffer.inode, buffer.size):
            raise RuntimeError(f"{path} is not the memory that process {pid} published: that process has ended")
        # Populated at once: page faults would otherwise double the time of the first swap.
        return mmap.mmap(fd, buffer.size, mmap.MAP_SHARED | mmap.MAP_POPULATE, mmap.PROT_READ)
    finally:
        os.close(fd)
