"""torch.distributed and Megatron's parallel groups for one trainer rank."""

import contextlib
import io
import ipaddress
import os
import pickle
import socket
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from megatron_rl.actor import accelerator
from megatron_rl.actor.config import ActorConfig
from megatron_rl.system.tcp_store import inherited_listener, listening_store

_SECONDS = 1800.0  # that a rank waits for the others
_PATIENCE = timedelta(days=1)  # with rank 0, which generates and scores; a rank that dies ends the run at once
_objects: dist.ProcessGroup | None = None  # see share; None: the default group, which is gloo's already


def initialize(config: ActorConfig, seed: int) -> None:
    """Join the job and build its groups; RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT as torchrun sets them.

    Order of ranks: tensor, context, expert, data, pipeline, fastest first.
    """
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    accelerator.adapt()
    torch.set_num_threads(config.threads)
    if accelerator.on_gpu():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    with _near(), _one_loop():
        if not dist.is_initialized():
            patience = timedelta(seconds=_SECONDS) if accelerator.on_gpu() else _PATIENCE
            dist.init_process_group(accelerator.backend(), timeout=patience, **_meeting())
            if accelerator.on_gpu():
                global _objects
                _objects = dist.new_group(backend="gloo", timeout=_PATIENCE)
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=config.tensor_parallel,
            pipeline_model_parallel_size=config.pipeline_parallel,
            virtual_pipeline_model_parallel_size=config.virtual_pipeline if config.virtual_pipeline > 1 else None,
            context_parallel_size=config.context_parallel,
            expert_model_parallel_size=config.expert_parallel,
            expert_tensor_parallel_size=config.expert_tensor_parallel,
        )
    model_parallel_cuda_manual_seed(seed)
    torch.manual_seed(seed)


def first() -> bool:
    """Whether this is rank 0, which also generates, scores and keeps the records."""
    return dist.get_rank() == 0


def share(value: Any) -> Any:
    """Rank 0's value (picklable), on every rank.

    It and those below go over the host: over NCCL a rank that waits for rank 0 would keep its GPU from whatever else
    is sent from there meanwhile, and its watchdog would end it after half an hour.
    """
    box = [value]
    dist.broadcast_object_list(box, src=0, group=_objects)
    return box[0]


def scatter(values: Sequence[Any] | None, shares: Sequence[int]) -> Any:
    """``values[shares[rank]]`` of rank 0's values (picklable); the other ranks give None. ``shares``: on every rank.

    Rank 0 sends each value once, to the first rank of its share, and that one to the others: what rank 0 has to do
    does not grow with their number.
    """
    rank = dist.get_rank()
    first, *others = (holder for holder, share in enumerate(shares) if share == shares[rank])
    under_way: list[Any] = []
    mine = None
    for share, value in enumerate(values or ()):
        content = _pickled(value)
        if share == shares[0]:
            mine = content
        else:
            under_way += _send(content, shares.index(share))
    if mine is None:
        mine = _receive(0 if rank == first else first)
    if rank == first:
        for other in others:
            under_way += _send(mine, other)
    for message in under_way:
        message.wait()
    return pickle.loads(memoryview(mine.numpy()))  # type: ignore[arg-type]


def gather(value: Any) -> list[Any]:
    """Every rank's value (picklable), on rank 0; empty on the others."""
    values: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(value, values, group=_objects)
    return values or []


def barrier() -> None:
    """Wait for all ranks; not for their GPUs."""
    dist.barrier(group=_objects)


def _pickled(value: Any) -> torch.Tensor:
    """As bytes."""
    content = io.BytesIO()
    pickle.dump(value, content, pickle.HIGHEST_PROTOCOL)
    return torch.frombuffer(content.getbuffer(), dtype=torch.uint8)


def _send(content: torch.Tensor, rank: int) -> list[Any]:
    size = torch.tensor([len(content)])
    return [dist.isend(size, rank, group=_objects), dist.isend(content, rank, group=_objects)]


def _receive(rank: int) -> torch.Tensor:
    size = torch.zeros(1, dtype=torch.int64)
    dist.recv(size, rank, group=_objects)
    content = torch.empty(int(size), dtype=torch.uint8)
    dist.recv(content, rank, group=_objects)
    return content


def shutdown() -> None:
    """Leave the job."""
    from megatron.core import parallel_state

    global _objects
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()
    _objects = None


def _on_loopback() -> bool:
    address = socket.getaddrinfo(os.environ["MASTER_ADDR"], None, type=socket.SOCK_STREAM)[0][4][0]
    return ipaddress.ip_address(address).is_loopback


def _meeting() -> dict[str, Any]:
    """How ranks find each other: at a store that listens at rank 0's address alone, else at torchrun's own."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return {}
    rank, host, port = int(os.environ["RANK"]), os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = (
        listening_store(host, port, _SECONDS, inherited_listener())
        if rank == 0
        else dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=_SECONDS))
    )
    return {"store": store, "rank": rank, "world_size": int(os.environ["WORLD_SIZE"])}


@contextlib.contextmanager
def _one_loop() -> Iterator[None]:
    """Gloo groups made inside share the devices of the first.

    Each device has a thread that wakes up every few milliseconds, and Megatron makes more than twenty groups: 2 % of a
    core while nothing is sent.
    """
    gloo: Any = distributed_c10d.ProcessGroupGloo
    devices: list[Any] = []

    class Group(gloo):  # type: ignore[misc]
        def __init__(self, store: dist.Store, rank: int, size: int, timeout: timedelta) -> None:
            if devices:
                options = gloo._Options()
                options._timeout, options._devices = timeout, devices
                super().__init__(store, rank, size, options)
            else:
                super().__init__(store, rank, size, timeout=timeout)
                devices.extend(self.options._devices)

    distributed_c10d.ProcessGroupGloo = Group  # type: ignore[misc]
    try:
        yield
    finally:
        distributed_c10d.ProcessGroupGloo = gloo  # type: ignore[misc]


@contextlib.contextmanager
def _near() -> Iterator[None]:
    """Groups made inside send over loopback when the ranks meet there; Gloo takes what the host's name stands for.

    Not for groups made later: engines may be on other machines.
    """
    name = "GLOO_SOCKET_IFNAME"
    if not _on_loopback() or name in os.environ:
        yield
        return
    os.environ[name] = "lo"
    try:
        yield
    finally:
        del os.environ[name]
