"""How a destination reaches the trainer's ranks: what a rank offers by each transport, and what is made of it there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_rl.resharding.execute import flat
from megatron_rl.resharding.plan import Plan
from megatron_rl.resharding.terms import Reach
from megatron_rl.resharding.transports.cuda_ipc import CudaIpc, DeviceMemory, HeldOnDevice
from megatron_rl.resharding.transports.cuda_ipc import offer as offer_device
from megatron_rl.resharding.transports.files import FilesDestination, FilesSource
from megatron_rl.resharding.transports.shared_memory import RankMemory, publish
from megatron_rl.resharding.transports.transport import HeldStill, Inbound, Loaded, Outbound, SharedMemory

ON_DEVICE = ("cuda_ipc", "nccl")  # those that take weights out of GPU memory


@dataclass(frozen=True)
class Shapes:
    """A rank's parameters by local name, where nobody reads its memory: it sends them, or others bring them."""

    shapes: dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Written:
    """A rank's parameters, which it writes into a folder that both sides see, under the name of this attempt."""

    shapes: dict[str, tuple[int, ...]]
    folder: str
    attempt: str
    seconds: float  # that a destination waits for a version


Memory = RankMemory | DeviceMemory | Shapes | Written


def offer(reach: Reach, parameters: Mapping[str, torch.Tensor]) -> Memory:
    """What destinations must know about one rank's contiguous parameters, for the transport that ``reach`` says.

    Raises InputError when shared memory is too small, ValueError for parameters in another kind of memory.
    """
    if reach.transport == "shared_memory":
        return publish(parameters)
    if reach.transport == "cuda_ipc":
        return offer_device(parameters)
    shapes = {name: tuple(p.shape) for name, p in parameters.items()}
    if reach.transport == "files":
        return Written(shapes, reach.folder, reach.attempt, reach.seconds)
    return Shapes(shapes)


def outbound(
    reach: Reach, plan: Plan, rank: int, parameters: Mapping[str, torch.Tensor], dtypes: Mapping[str, torch.dtype]
) -> Outbound:
    """A source rank's end: it hashes what it owns as the transport's destinations do, and writes it for "files".

    With gloo and nccl it only hashes: those send when an engine asks (``swap.sender``).
    """
    if reach.transport == "files":
        return FilesSource(plan, rank, parameters, dtypes, Path(reach.folder), reach.attempt)
    ends = HeldOnDevice if reach.transport in ON_DEVICE else HeldStill
    return ends(plan, rank, parameters, dtypes)


def inbound(plan: Plan, rank: int, parameters: Mapping[str, torch.Tensor], memories: Sequence[Memory]) -> Inbound:
    """Destination rank ``rank``'s end towards what the trainer's ranks offer, as far as it can be read."""
    first = memories[0]
    if isinstance(first, Written):
        return FilesDestination(plan, rank, parameters, Path(first.folder), first.attempt, first.seconds)
    copies = [plan.copies[i] for i in plan.copies_to(rank)]
    destinations = {name: flat(p) for name, p in parameters.items()}
    if isinstance(first, RankMemory):
        return SharedMemory(copies, memories, destinations)  # type: ignore[arg-type]
    if isinstance(first, DeviceMemory):
        return CudaIpc(copies, memories, destinations)  # type: ignore[arg-type]
    return Loaded()
