"""SGLang's own ways to new weights: rank 0 reads full tensors from the trainer's ranks and hands them over.

Slower than the pull and with more memory (one bucket at a time here, and what SGLang takes); for servers whose workers
cannot reach the trainer's memory. The proof is the same: the workers hash what they then hold.
"""

import asyncio
import io
import pickle
import secrets
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from megatron_rl.resharding.folders.export import TrainedTensors, export_hf
from megatron_rl.resharding.swap import SwapSource
from megatron_rl.rollout.sglang.servers.http import Server, ServerError
from megatron_rl.system import machine
from megatron_rl.system.tcp_store import listening_store

BUCKET = 1 << 28  # bytes handed over at a time
_TIDY = 10.0  # seconds for a server to leave a group of a swap that broke off


class _Metadata:
    """Where a tensor lies in a flattened bucket; in a pickle it is SGLang's class, which is not imported here."""

    module, name = "sglang.srt.weight_sync.tensor_bucket", "FlattenedTensorMetadata"

    def __init__(self, name: str, tensor: torch.Tensor, start: int) -> None:
        self.__dict__ |= {"name": name, "shape": tuple(tensor.shape), "dtype": tensor.dtype, "start_idx": start}
        self.__dict__ |= {"end_idx": start + tensor.nbytes, "numel": tensor.nbytes}


class _Pickler(pickle._Pickler):  # the one in Python: the other does not let a global be named
    def save_global(self, obj: Any, name: str | None = None) -> None:
        if obj is _Metadata:
            self.write(pickle.GLOBAL + f"{_Metadata.module}\n{_Metadata.name}\n".encode())  # type: ignore[attr-defined]
            self.memoize(obj)  # type: ignore[attr-defined]
        else:
            super().save_global(obj, name)  # type: ignore[misc]


def flattened_bucket(tensors: list[tuple[str, torch.Tensor]]) -> bytes:
    """Tensors as the pickle that SGLang's load format flattened_bucket takes."""
    metadata, start = [], 0
    for name, tensor in tensors:
        metadata.append(_Metadata(name, tensor, start))
        start += tensor.nbytes
    flat = torch.cat([tensor.reshape(-1).view(torch.uint8) for _, tensor in tensors])
    out = io.BytesIO()
    _Pickler(out, protocol=4).dump({"flattened_tensor": flat, "metadata": metadata})
    return out.getvalue()


class FullTensors:
    """Brings the trainer's weights into a server by one of ``rollout.sglang.swap``'s ways; a ``swap.Bring``.

    Several servers are brought them at the same time: what one is brought has names of its own, and is copied in a
    thread, for the event loop looks after the others meanwhile. ``seconds``: that each step may take.
    """

    def __init__(self, source: SwapSource, way: str, workers: int, folder: Path, host: str, seconds: float) -> None:
        self.source, self.way, self.workers, self.folder, self.host = source, way, workers, folder, host
        self.seconds = seconds
        self.trained = TrainedTensors(source)

    async def __call__(self, server: Server, version: int) -> None:
        """Bring them all."""
        await {"tensor": self._tensor, "distributed": self._distributed, "disk": self._disk}[self.way](server)

    def _read(self) -> Iterator[list[tuple[str, torch.Tensor]]]:
        bucket: list[tuple[str, torch.Tensor]] = []
        for name in self.trained.layout.tensors:
            tensor = self.trained.tensor(name)
            if bucket and sum(t.nbytes for _, t in bucket) + tensor.nbytes > BUCKET:
                yield bucket
                bucket = []
            bucket.append((name, tensor))
        yield bucket

    async def _buckets(self) -> AsyncIterator[list[tuple[str, torch.Tensor]]]:
        buckets = self._read()
        while bucket := await asyncio.to_thread(next, buckets, None):
            yield bucket

    async def _tensor(self, server: Server) -> None:
        async for bucket in self._buckets():
            content = await asyncio.to_thread(flattened_bucket, bucket)
            await server.update_from_tensor(content, self.workers, "flattened_bucket", None, self.seconds)

    async def _disk(self, server: Server) -> None:
        target = self.folder / f"weights-{secrets.token_hex(8)}"
        try:
            await asyncio.to_thread(export_hf, target, self.source)
            await server.update_from_disk(str(target), self.seconds)
        finally:
            await asyncio.to_thread(shutil.rmtree, target, ignore_errors=True)

    async def _distributed(self, server: Server) -> None:
        """Over a process group of its own: rank 0 here, the workers behind it."""
        backend, group = "nccl" if machine.gpus() else "gloo", f"megatron_rl-{secrets.token_hex(8)}"
        world, store = 1 + self.workers, listening_store(self.host)
        joined = asyncio.to_thread(_join, store, world, group, backend, self.seconds)
        address = self.host, store.port
        _, mine = await asyncio.gather(server.join_group(address, world, group, backend, self.seconds), joined)
        try:
            async for bucket in self._buckets():
                names = [name for name, _ in bucket]
                dtypes = [str(t.dtype).removeprefix("torch.") for _, t in bucket]
                sent = asyncio.to_thread(_broadcast, [t for _, t in bucket], mine)
                await asyncio.gather(
                    server.receive(names, dtypes, [list(t.shape) for _, t in bucket], group, self.seconds), sent
                )
        except BaseException:
            await asyncio.to_thread(dist.destroy_process_group, mine)
            with suppress(ServerError):
                await server.leave_group(group, _TIDY)
            raise
        await asyncio.to_thread(dist.destroy_process_group, mine)
        await server.leave_group(group, self.seconds)


def _join(store: dist.Store, world: int, group: str, backend: str, seconds: float) -> Any:
    """The group as SGLang's workers make it; torch's public functions only make groups inside the default one."""
    made, _ = distributed_c10d._new_process_group_helper(
        world,
        0,
        [],
        distributed_c10d.Backend(backend),
        dist.PrefixStore(group, store),
        group_name=group,  # type: ignore[arg-type]
        timeout=timedelta(seconds=seconds),
    )
    distributed_c10d._world.pg_group_ranks[made] = {i: i for i in range(world)}
    return made


def _broadcast(tensors: list[torch.Tensor], group: Any) -> None:
    for tensor in tensors:
        on_device = tensor.cuda() if machine.gpus() else tensor
        dist.broadcast(on_device, src=0, group=group)
