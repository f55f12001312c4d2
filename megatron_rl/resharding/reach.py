"""How a destination reaches the trainer's ranks: what a rank offers by each transport, and what is made of it there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from megatron_rl.resharding.cuda_ipc import CudaIpc, DeviceMemory, HeldOnDevice
from megatron_rl.resharding.cuda_ipc import offer as offer_device
from megatron_rl.resharding.execute import flat
from megatron_rl.resharding.meeting import BACKENDS, Meeting
from megatron_rl.resharding.plan import Plan
from megatron_rl.resharding.point_to_point import PointToPointDestination
from megatron_rl.resharding.shared_memory import RankMemory, publish
from megatron_rl.resharding.transport import Dtypes, HeldStill, Inbound, Loaded, Outbound, SharedMemory

TRANSPORTS = ("shared_memory", "cuda_ipc", *BACKENDS)
ON_DEVICE = ("cuda_ipc", "nccl")  # those that take weights out of GPU memory


@dataclass(frozen=True)
class Shapes:
    """A rank's parameters by local name, where nobody reads its memory: it sends them, or others bring them."""

    shapes: dict[str, tuple[int, ...]]


Memory = RankMemory | DeviceMemory | Shapes


def offer(transport: str, parameters: Mapping[str, torch.Tensor]) -> Memory:
    """What destinations must know about one rank's contiguous parameters, for a transport of TRANSPORTS.

    Raises InputError when shared memory is too small, ValueError for parameters in another kind of memory.
    """
    if transport == "shared_memory":
        return publish(parameters)
    if transport == "cuda_ipc":
        return offer_device(parameters)
    return Shapes({name: tuple(p.shape) for name, p in parameters.items()})


def outbound(transport: str, plan: Plan, rank: int, parameters: Mapping[str, torch.Tensor], dtypes: Dtypes) -> Outbound:
    """A source rank's hashes of what it owns, as the transport's destinations compute them."""
    ends = HeldOnDevice if transport == "cuda_ipc" else HeldStill
    return ends(plan, rank, parameters, dtypes)


def inbound(
    plan: Plan,
    rank: int,
    parameters: Mapping[str, torch.Tensor],
    memories: Sequence[Memory],
    meeting: Meeting | None,
) -> Inbound:
    """Destination rank ``rank``'s end towards what the trainer's ranks offer; with a ``meeting`` they send."""
    if meeting is not None:
        return PointToPointDestination(plan, rank, parameters, meeting.join(meeting.sources + rank))
    copies = [plan.copies[i] for i in plan.copies_to(rank)]
    destinations = {name: flat(p) for name, p in parameters.items()}
    if all(isinstance(memory, RankMemory) for memory in memories):
        return SharedMemory(copies, memories, destinations)  # type: ignore[arg-type]
    if all(isinstance(memory, DeviceMemory) for memory in memories):
        return CudaIpc(copies, memories, destinations)  # type: ignore[arg-type]
    return Loaded()
