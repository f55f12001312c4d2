"""Weights through a folder that both sides see: where nothing faster connects them, or to hand them over later.

Each source rank writes one file per version for every destination rank that takes something from it: a header (who,
for whom, which run, version and plan, and the hash of every copy), then the copies in the plan's order, each in
row-major order and in the destination's dtype, where either side finds it by the plan. A file is written beside its
place, flushed and renamed, so it is there whole or not at all; its owner removes the version before.

A destination reads every copy into its place and compares what it holds there with the owner's hash.
"""

import os
import struct
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from io import FileIO
from pathlib import Path

import numpy as np
import torch
import xxhash

from megatron_rl.errors import SwapError
from megatron_rl.resharding.execute import BAND, bands, box, digest, flat, update
from megatron_rl.resharding.layout import merged
from megatron_rl.resharding.plan import Copy, Plan
from megatron_rl.resharding.transports.transport import Owned, check_arrival
from megatron_rl.system.files import flush, require_space

HEADER = struct.Struct("<8sq16s16s16sqqqq")  # magic, version, run, plan, dtypes, source, destination, copies, bytes
MAGIC = b"swapfile"
HASH = 8  # bytes
ALIGNMENT = 64  # bytes: every copy begins at a multiple
POLL = 0.02  # seconds between two looks for a file
OTHER_RUN = "is of another run"  # it may yet be replaced

Wanted = Mapping[str, torch.dtype] | torch.dtype  # the destination's dtypes: by its local names, or one for all


class _Parcel:
    """What goes from one rank to another: copies, and where each stands in the file."""

    def __init__(self, plan: Plan, run: str, indices: Sequence[int], dtypes: Wanted) -> None:
        self.plan, self.indices, self.copies = plan, indices, [plan.copies[i] for i in indices]
        self.source, self.destination = self.copies[0].source_rank, self.copies[0].destination_rank
        self.dtypes = [dtypes[c.destination] if isinstance(dtypes, Mapping) else dtypes for c in self.copies]
        self.run = xxhash.xxh3_128_digest(run.encode())
        self.offsets, end = [], HEADER.size + HASH * (len(self.copies) + 1)
        for c, dtype in zip(self.copies, self.dtypes, strict=True):
            begin = -(-end // ALIGNMENT) * ALIGNMENT
            self.offsets.append(begin)
            end = begin + c.elements * dtype.itemsize
        self.size = end

    def path(self, folder: Path, version: int) -> Path:
        return folder / f"{version}.from{self.source}.to{self.destination}.swap"

    def header(self, version: int, hashes: np.ndarray) -> bytes:
        kinds = xxhash.xxh3_128_digest(repr([str(d) for d in self.dtypes]).encode())
        ranks = (self.source, self.destination, len(self.copies), self.size)
        fixed = HEADER.pack(MAGIC, version, self.run, bytes.fromhex(self.plan.hash), kinds, *ranks)
        content = fixed + hashes.astype("<u8").tobytes()
        return content + xxhash.xxh3_64_intdigest(content).to_bytes(HASH, "little")


def _parcels(plan: Plan, run: str, pairs: Iterable[tuple[int, int]], dtypes: Wanted) -> list[_Parcel]:
    """One for each peer of (peer, index of a copy), in the order of their ranks."""
    by_peer = defaultdict(list)
    for peer, index in pairs:
        by_peer[peer].append(index)
    return [_Parcel(plan, run, by_peer[peer], dtypes) for peer in sorted(by_peer)]


class FilesSource:
    """A source rank's end (an ``Outbound``): ``parameters`` contiguous, by local name, on any device.

    ``dtypes`` is what the destinations hold. ``run`` names this run, and this attempt at it: files of another one are
    not read. Building it removes what this rank has left in the folder.
    """

    def __init__(
        self, plan: Plan, rank: int, parameters: Mapping[str, torch.Tensor], dtypes: Wanted, folder: Path, run: str
    ) -> None:
        self.folder, self._rank = folder, rank
        self._tensors = {name: flat(p) for name, p in parameters.items()}
        pairs = [(plan.copies[i].destination_rank, i) for i in plan.copies_from(rank)]
        self._parcels = _parcels(plan, run, pairs, dtypes)
        folder.mkdir(parents=True, exist_ok=True)
        self.close()

    def push(self, version: int) -> Owned:
        """Write every copy that this rank owns; the weights may change when it returns.

        Raises SwapError naming file and tensor that cannot be written, InputError when there is too little space.
        """
        self.close()
        size = sum(parcel.size for parcel in self._parcels)
        require_space(self.folder, size, f"version {version} of trainer rank {self._rank}'s weights", "Free some.")
        owned = [self._write(parcel, version) for parcel in self._parcels]
        indices = [i for parcel in self._parcels for i in parcel.indices]
        return np.array(indices, dtype=np.int64), np.concatenate([np.empty(0, dtype=np.uint64), *owned])

    def close(self) -> None:
        """Remove this rank's files, those included that a killed process did not finish."""
        for path in self.folder.glob(f"*.from{self._rank}.to*.swap"):  # hidden ones too
            path.unlink()

    def _write(self, parcel: _Parcel, version: int) -> np.ndarray:
        path = parcel.path(self.folder, version)
        partial = path.with_name(f".{path.name}")
        hashes = np.zeros(len(parcel.copies), dtype=np.uint64)
        what = "its header"
        try:
            with partial.open("wb", buffering=0) as file:
                for i, (c, dtype) in enumerate(zip(parcel.copies, parcel.dtypes, strict=True)):
                    what = f"tensor {' and '.join(c.tensors)}"
                    file.seek(parcel.offsets[i])
                    hashes[i] = self._write_copy(file.fileno(), c, dtype)
                file.seek(0)
                _write_all(file.fileno(), memoryview(parcel.header(version, hashes)))
                os.fsync(file.fileno())
            partial.rename(path)
            flush(self.folder)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise SwapError(f"{path} of version {version} cannot be written at {what}: {error.strerror}.") from error
        return hashes

    def _write_copy(self, handle: int, c: Copy, dtype: torch.dtype) -> int:
        shape, (steps,) = merged(c.shape, c.source_strides)
        held = box(self._tensors[c.source], shape, steps, c.source_offset)
        state = xxhash.xxh3_64()
        for part in bands(shape, dtype.itemsize):
            piece = held[part].to("cpu", dtype).contiguous()
            update(state, piece, dtype)
            _write_all(handle, piece.view(-1).view(torch.uint8).numpy().data)
        return state.intdigest()


class FilesDestination:
    """A destination rank's end (an ``Inbound``). ``parameters``: contiguous, by local name; ``run`` as its sources'.

    ``timeout``: seconds that a pull may take.
    """

    digest = staticmethod(digest)

    def __init__(
        self,
        plan: Plan,
        rank: int,
        parameters: Mapping[str, torch.Tensor],
        folder: Path,
        run: str,
        timeout: float = 300.0,
    ) -> None:
        self.folder, self.timeout = folder, timeout
        self._tensors = {name: flat(p) for name, p in parameters.items()}
        dtypes = {name: p.dtype for name, p in parameters.items()}
        indices = plan.copies_to(rank)
        self._places = {i: n for n, i in enumerate(indices)}
        self._parcels = _parcels(plan, run, [(plan.copies[i].source_rank, i) for i in indices], dtypes)
        self._slot = torch.empty(BAND, dtype=torch.uint8)
        self._closed = False

    def pull(self, version: int) -> np.ndarray:
        """Wait for every source's file, read it into place and compare it with its owner's hashes.

        Raises SwapError naming the file, and the tensor, that is missing, late, of another swap or damaged.
        """
        if self._closed:
            raise SwapError(f"Version {version} cannot be read: this end was closed.")
        deadline = time.monotonic() + self.timeout
        landed = np.zeros(len(self._places), dtype=np.uint64)
        for parcel in self._parcels:
            path = parcel.path(self.folder, version)
            try:
                with self._open(parcel, path, version, deadline) as file:
                    found, expected = self._read(file.fileno(), parcel, path, deadline)
            except OSError as error:
                raise SwapError(f"{path} cannot be read: {error.strerror}.") from error
            try:
                check_arrival(parcel.copies, found, expected, version)
            except SwapError as error:
                raise SwapError(f"{error} They came through {path}.") from error
            landed[[self._places[i] for i in parcel.indices]] = found
        return landed

    def close(self) -> None:
        """Read no further version."""
        self._closed = True

    def _open(self, parcel: _Parcel, path: Path, version: int, deadline: float) -> FileIO:
        """Wait for a file of this run, and refuse it unless it is the one that the plan says."""
        problem = "is not there"
        while True:
            try:
                file = path.open("rb", buffering=0)
            except FileNotFoundError:
                pass
            else:
                problem = _problem(file.fileno(), parcel, version)
                if not problem:
                    return file
                file.close()
                if problem != OTHER_RUN:
                    raise SwapError(f"{path} {problem}.")
            if time.monotonic() > deadline:
                raise SwapError(
                    f"{path} {problem} at the deadline of {self.timeout:g} s: trainer rank {parcel.source} did not "
                    f"bring version {version}, whose first tensor would have been {parcel.copies[0].tensor}."
                )
            time.sleep(POLL)

    def _read(self, handle: int, parcel: _Parcel, path: Path, deadline: float) -> tuple[np.ndarray, np.ndarray]:
        """The hashes of what landed, and those of the header."""
        count = len(parcel.copies)
        expected = np.frombuffer(os.pread(handle, HASH * count, HEADER.size), dtype="<u8").astype(np.uint64)
        landed = np.zeros(count, dtype=np.uint64)
        for i, (c, dtype, at) in enumerate(zip(parcel.copies, parcel.dtypes, parcel.offsets, strict=True)):
            if time.monotonic() > deadline:
                raise SwapError(f"{path} was not read until the deadline of {self.timeout:g} s, at tensor {c.tensor}.")
            shape, (steps,) = merged(c.shape, c.destination_strides)
            place = box(self._tensors[c.destination], shape, steps, c.destination_offset)
            state = xxhash.xxh3_64()
            for part in bands(shape, dtype.itemsize):
                held = place[part]
                size = held.numel() * dtype.itemsize
                direct = held.is_contiguous() and held.device.type == "cpu"
                into = held.view(-1).view(torch.uint8) if direct else self._slot[:size]
                if not _read_all(handle, into.numpy().data, at):
                    raise SwapError(f"{path} ends in the midst of tensor {' and '.join(c.tensors)}.")
                if not direct:
                    held.copy_(into.view(dtype).view(held.shape))
                update(state, held, dtype)
                at += size
            landed[i] = state.intdigest()
        return landed, expected


def _problem(handle: int, parcel: _Parcel, version: int) -> str:
    """Why a file is not the one that the plan says; empty when it is."""
    size = HEADER.size + HASH * (len(parcel.copies) + 1)
    content = os.pread(handle, size, 0)
    if len(content) < HEADER.size or content[: len(MAGIC)] != MAGIC:
        return "is no file of a weight swap"
    _, theirs, run, plan, _, _, _, _, _ = HEADER.unpack_from(content)
    if run != parcel.run:
        return OTHER_RUN
    if theirs != version:
        return f"holds version {theirs}, not version {version}"
    if plan.hex() != parcel.plan.hash:
        return f"follows plan {plan.hex()}, this process plan {parcel.plan.hash}"
    hashes = np.frombuffer(content[HEADER.size : size - HASH], dtype=np.uint8)
    if len(hashes) % HASH or parcel.header(version, hashes.view("<u8")) != content:
        return "has a damaged header, or one for other ranks or dtypes"
    there = os.fstat(handle).st_size
    if there != parcel.size:
        first = next((c for c, at in zip(parcel.copies, parcel.offsets, strict=True) if at >= there), parcel.copies[-1])
        return f"has {there} bytes instead of {parcel.size}: it lacks tensor {first.tensor}"
    return ""


def _write_all(handle: int, content: memoryview) -> None:
    while content:
        content = content[os.write(handle, content) :]


def _read_all(handle: int, into: memoryview, at: int) -> bool:
    """Fill memory from a file; False when the file ends before."""
    while into:
        count = os.preadv(handle, [into], at)
        if not count:
            return False
        into, at = into[count:], at + count
    return True
