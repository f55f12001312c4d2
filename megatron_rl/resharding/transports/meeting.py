"""Where processes of a swap over the network find each other: a process group of their own.

A run's default group holds its trainer ranks only, and engines come and go. Rank 0 opens a ``MeetingPlace``; for every
engine, and again after each restart, it names a ``Meeting``, at which the trainer ranks that send to it and its workers
join a new group. Nobody else's groups are touched when it breaks.
"""

import os
import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from megatron_rl.errors import LinkError
from megatron_rl.resharding.transports.endpoints import Endpoints
from megatron_rl.system.machine import address_towards
from megatron_rl.system.tcp_store import listening_store

BACKENDS = ("gloo", "nccl")  # messages from host memory, from GPU memory
MARGIN = 10.0  # seconds by which whoever asks for a swap waits longer than its links do
_BLOCKING_WAIT = "TORCH_NCCL_BLOCKING_WAIT"
_changing = threading.Lock()  # the environment: a rank has a thread for each engine


@dataclass(frozen=True)
class Meeting:
    """One group to join (picklable): the trainer ranks ``senders``, then ``destinations`` workers of one engine."""

    address: tuple[str, int]  # of the store
    name: str
    backend: str
    sources: int  # trainer ranks that there are
    senders: tuple[int, ...]  # those of them that send to the engine
    destinations: int
    seconds: float  # that joining, and then each swap, may take

    def join_as_source(self, rank: int) -> Endpoints:
        """Join as trainer rank ``rank``; as ``join``."""
        return self.join(self.senders.index(rank))

    def join_as_destination(self, rank: int) -> Endpoints:
        """Join as worker ``rank``; as ``join``."""
        return self.join(len(self.senders) + rank)

    def join(self, rank: int) -> Endpoints:
        """Join as ``rank`` of the group; returns when all are there. Raises LinkError when somebody is not in time."""
        limit = timedelta(seconds=self.seconds)
        host, port = self.address
        ranks = range(len(self.senders) + self.destinations)
        try:
            store = dist.PrefixStore(
                self.name, dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=limit)
            )
            store.set(f"here/{rank}", "")  # NCCL's group meets nobody before its first message
            store.wait([f"here/{other}" for other in ranks], limit)
            group = _group(self.backend, store, rank, self)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise LinkError(
                f"Process {rank} of a swap over {self.backend} found no way to the others: {reason}."
            ) from error
        device = torch.device("cuda", torch.cuda.current_device()) if self.backend == "nccl" else torch.device("cpu")
        return Endpoints(
            [self.senders.index(r) if r in self.senders else -1 for r in range(self.sources)],
            ranks[len(self.senders) :],
            timeout=self.seconds,
            group=group,
            device=device,
            own=True,
        )


class MeetingPlace:
    """A store at ``host`` (an address of this machine) where meetings are held."""

    def __init__(self, host: str) -> None:
        self._store = listening_store(host)
        self.address: tuple[str, int] = (host, self._store.port)

    def meeting(self, backend: str, sources: int, senders: Sequence[int], destinations: int, seconds: float) -> Meeting:
        """A new one; see ``Meeting``."""
        return Meeting(self.address, secrets.token_hex(8), backend, sources, tuple(senders), destinations, seconds)


def _group(backend: str, store: dist.Store, rank: int, meeting: Meeting) -> Any:
    world, limit = len(meeting.senders) + meeting.destinations, timedelta(seconds=meeting.seconds)
    if backend == "nccl":
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = limit
        with _blocking_wait():
            return dist.ProcessGroupNCCL(store, rank, world, options)
    options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._timeout = limit
    # Not what the host's name stands for: that is often loopback
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=address_towards(meeting.address[0]))]
    return dist.ProcessGroupGloo(store, rank, world, options)


@contextmanager
def _blocking_wait() -> Iterator[None]:
    """NCCL groups made inside raise in the thread that waits for a message that is lost or late.

    Others have a watchdog, which ends the process: here that would be a trainer rank, or a server.
    """
    with _changing:
        before = os.environ.get(_BLOCKING_WAIT)
        os.environ[_BLOCKING_WAIT] = "1"
        try:
            yield
        finally:
            if before is None:
                del os.environ[_BLOCKING_WAIT]
            else:
                os.environ[_BLOCKING_WAIT] = before
