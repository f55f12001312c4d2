"""What of a run is on which of its machines, and the environment in which trainer ranks find each other."""

from dataclasses import dataclass

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Placement:
    """``ranks`` trainer ranks and ``engines`` rollout engines on ``hosts`` (addresses, in their order).

    The last ``rollout`` hosts have engines only and the others ranks only; with 0 all have both. Ranks are dealt out
    in equal shares, engines as evenly as they go, both in the order of the hosts. The workers of an engine lie on
    ``span`` hosts in a row, which have all engines that they have in common.
    """

    hosts: tuple[str, ...]
    ranks: int
    engines: int
    rollout: int = 0
    span: int = 1

    @property
    def trainers(self) -> int:
        """How many hosts have ranks: the first ones."""
        return len(self.hosts) - self.rollout

    def ranks_on(self, host: int) -> range:
        """The trainer ranks of a host."""
        each = self.ranks // self.trainers if host < self.trainers else 0
        return range(host * each, (host + 1) * each)

    def engines_on(self, host: int) -> range:
        """The rollout engines of which a host has workers."""
        first = self.trainers if self.rollout else 0
        if host < first:
            return range(0)
        count, place = (len(self.hosts) - first) // self.span, (host - first) // self.span
        return range(-(-place * self.engines // count), -(-(place + 1) * self.engines // count))

    def host_of_engine(self, engine: int) -> int:
        """The host of an engine, or the first of its hosts."""
        return next(host for host in range(len(self.hosts)) if engine in self.engines_on(host))

    def environment(self, rank: int, port: int) -> dict[str, str]:
        """torchrun's variables for one rank; ``port``: of the store on the first host, where the ranks meet."""
        each = self.ranks // self.trainers
        return {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank % each),
            "WORLD_SIZE": str(self.ranks),
            "LOCAL_WORLD_SIZE": str(each),
            "MASTER_ADDR": self.hosts[0],
            "MASTER_PORT": str(port),
            "TORCHELASTIC_USE_AGENT_STORE": "False",  # torchrun's own, where it has started the supervisors
        }
