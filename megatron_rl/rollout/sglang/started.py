"""The servers of a run, as rank 0 has them: those of its own machine, of others, and those that run already."""

from dataclasses import dataclass, replace
from pathlib import Path

from megatron_rl.errors import InputError
from megatron_rl.rollout.config import Served
from megatron_rl.rollout.sglang.replica import Replica
from megatron_rl.rollout.sglang.servers.gpus import engine_gpus, shared
from megatron_rl.rollout.sglang.servers.hosts import Hosts
from megatron_rl.rollout.sglang.servers.keeper import SESSION, START_SECONDS, FarKeeper, FarServer
from megatron_rl.rollout.sglang.servers.process import ServerProcess, arguments, environment
from megatron_rl.system import machine
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
    local = replace(served.rollout, engines=hosts.engines[0])
    gpus = engine_gpus(local, hosts.ranks[0])
    env = environment(local.threads, options.tensor_parallel, key)
    found, shares = [], shared(gpus, hosts.ranks[0])
    for index in range(hosts.engines[0]):
        port = options.port + index if options.port else machine.free_low_port()
        name = f"sglang{index}"
        chosen = arguments(served, model, index, port, key, gpus[index] if gpus else None)
        process = ServerProcess(name, chosen, env, folder, logs / f"{name}.log")
        found.append(Replica(name, f"http://127.0.0.1:{port}", process, options, control))
    keepers = _keepers(control, sum(count > 0 for count in hosts.engines[1:]))
    far = [(count, ranks) for count, ranks in zip(hosts.engines[1:], hosts.ranks[1:], strict=True) if count]
    for keeper, (count, ranks) in zip(keepers, far, strict=True):
        indices = range(len(found), len(found) + count)
        urls, also = keeper.ask("prepare", served, model.absolute(), logs.absolute(), list(indices), ranks)
        shares |= also
        for number, (index, url) in enumerate(zip(indices, urls, strict=True)):
            found.append(Replica(f"sglang{index}", url, FarServer(keeper, number), options, control))
        keeper.watch()
    return Started(found, keepers, shares)


def _keepers(control: Control, count: int) -> list[FarKeeper]:
    if not count:
        return []
    try:
        return [FarKeeper(worker) for worker in control.collect(SESSION, "keeper", range(count), START_SECONDS)]
    except WorkerError as error:
        raise InputError(f"Not all machines that SGLang's servers are to run on have called rank 0: {error}.") from None
