"""Where the trainer ranks of a run are, and the environment in which they find each other (torchrun's variables)."""

import socket
from dataclasses import dataclass

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Placement:
    """``ranks`` trainer ranks, as many on each of ``hosts``, in their order; this process is on host ``index``.

    ``master`` is the address and TCP port of rank 0's store, where the ranks meet.
    """

    hosts: tuple[str, ...]
    ranks: int
    index: int
    master: tuple[str, int]

    @property
    def here(self) -> range:
        """The ranks on this host."""
        each = self.ranks // len(self.hosts)
        return range(self.index * each, (self.index + 1) * each)

    def environment(self, rank: int) -> dict[str, str]:
        """The variables of one rank on this host."""
        address, port = self.master
        return {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank - self.here.start),
            "WORLD_SIZE": str(self.ranks),
            "LOCAL_WORLD_SIZE": str(len(self.here)),
            "MASTER_ADDR": address,
            "MASTER_PORT": str(port),
        }


def here(ranks: int, listener: socket.socket) -> Placement:
    """All ranks on this machine. ``listener`` has the port at which they meet: nobody else can take it meanwhile."""
    return Placement((LOOPBACK,), ranks, 0, (LOOPBACK, int(listener.getsockname()[1])))
