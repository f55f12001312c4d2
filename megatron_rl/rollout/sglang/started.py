"""The servers of a run, as rank 0 has them: those of its own machine, of others, and those that run already."""

from dataclasses import dataclass
from pathlib import Path

from megatron_rl.errors import InputError
from megatron_rl.rollout.config import Served
from megatron_rl.rollout.sglang.replica import Replica
from megatron_rl.rollout.sglang.servers.hosts import Hosts
from megatron_rl.rollout.sglang.servers.keeper import SESSION, START_SECONDS, FarKeeper, Keeper
from megatron_rl.rollout.sglang.servers.process import Part
from megatron_rl.rollout.sglang.servers.spread import SpreadServer
from megatron_rl.system import machine
from megatron_rl.system.channel import parse_address
from megatron_rl.system.control import Control, WorkerError


@dataclass
class Started:
    """The servers in the order of their numbers. ``shares``: some compute on GPUs that trainer ranks have, too."""

    replicas: list[Replica]
    keepers: list[FarKeeper]
    shares: bool

    @property
    def elsewhere(self) -> bool:
        """Whether a server is where the memory of this machine cannot be read."""
        return any(keeper.place != machine.place() for keeper in self.keepers)


def servers(
    served: Served, model: Path, key: bytes, folder: Path, logs: Path, control: Control, hosts: Hosts
) -> Started:
    """All of them, not started; ``folder``: for their private files. Raises InputError for a host without a keeper."""
    options = served.rollout.sglang
    adopted = [url.strip() for url in options.urls.split(",") if url.strip()]
    if adopted:
        return Started([Replica(url, url, None, options, control) for url in adopted], [], False)
    here = Keeper(parse_address(hosts.control)[0] if hosts.span > 1 else "127.0.0.1", key, folder)
    used = [host for host, count in enumerate(hosts.engines) if count]
    keepers = _keepers(control, sum(host > 0 for host in used))
    keeping: list[Keeper | FarKeeper] = [here, *keepers] if 0 in used else [*keepers]
    found: list[Replica] = []
    shares = False
    for first in range(0, len(used), hosts.span):
        group = keeping[first : first + hosts.span]
        indices = list(range(len(found), len(found) + hosts.engines[used[first]]))
        meetings = [group[0].ask("free_address") for _ in indices] if hosts.span > 1 else []
        urls: list[list[str]] = []
        for number, (keeper, host) in enumerate(zip(group, used[first:], strict=False)):
            parts = [Part(number, hosts.span, meeting) for meeting in meetings]
            port, ranks = options.port if keeper is here else 0, hosts.ranks[host]
            made, also = keeper.ask("prepare", served, model.absolute(), logs.absolute(), indices, ranks, port, parts)
            shares |= also
            urls.append(made)
        for place, index in enumerate(indices):
            processes = [keeper.server(place) for keeper in group]
            process = SpreadServer(processes) if hosts.span > 1 else processes[0]
            found.append(Replica(f"sglang{index}", urls[0][place], process, options, control))
    for keeper in keepers:
        keeper.watch()
    return Started(found, keepers, shares)


def _keepers(control: Control, count: int) -> list[FarKeeper]:
    if not count:
        return []
    try:
        return [FarKeeper(worker) for worker in control.collect(SESSION, "keeper", range(count), START_SECONDS)]
    except WorkerError as error:
        raise InputError(f"Not all machines that SGLang's servers are to run on have called rank 0: {error}.") from None
