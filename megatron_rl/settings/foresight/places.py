"""Which GPUs have trainer ranks, engines, both or nothing, as a run deals them out. Imports no torch."""

from collections import Counter
from dataclasses import dataclass, replace

from megatron_rl.config import Config
from megatron_rl.rollout.sglang.servers.gpus import engines_on, shared
from megatron_rl.settings.foresight.hardware import Hardware


@dataclass(frozen=True)
class Places:
    """Of all nodes: ranks and engines are dealt out in equal shares (``launch.placement``)."""

    ranks: int = 1  # of each node that trains
    crowd: int = 1  # engines that compute on one GPU, at most
    together: bool = False  # an engine and a trainer rank share a GPU
    apart: int = 0  # engines that would have GPUs to themselves
    idle: int = 0  # GPUs without a rank and without an engine


def places(config: Config, on: Hardware) -> Places:
    """Where ranks compute, and engines that are started on GPUs, beside them or on theirs."""
    rollout, serving, local = config.rollout, config.launch.rollout_nodes, local_ranks(config, on)
    if not on.gpus:
        return Places(local)
    started = rollout.engine == "sglang" and config.generates() and not rollout.sglang.urls
    engines, span = (rollout.engines, max(rollout.sglang.nodes, 1)) if started else (0, 1)
    groups = max((serving or on.nodes) // span, 1)  # of ``span`` nodes that have the same engines
    ranks = 0 if serving else local
    fewest, more = divmod(engines, groups)
    fullest = engines_on(replace(rollout, engines=fewest + (more > 0)), ranks, on.gpus)
    sparest = engines_on(replace(rollout, engines=fewest), ranks, on.gpus)
    idle = span * (more * _idle(ranks, fullest, on.gpus) + (groups - more) * _idle(ranks, sparest, on.gpus))
    idle += (on.nodes - serving) * _idle(local, [], on.gpus) if serving else 0
    crowd = max(Counter(gpu for gpus in fullest for gpu in gpus).values(), default=1)
    return Places(local, crowd, shared(fullest, ranks), groups * len({gpus.start for gpus in fullest}), idle)


def _idle(ranks: int, engines: list[range], gpus: int) -> int:
    """GPUs of a node that have nothing to do."""
    return len(set(range(gpus)) - set(range(ranks)) - {gpu for taken in engines for gpu in taken})


def local_ranks(config: Config, on: Hardware) -> int:
    """Trainer ranks of each node that trains."""
    return -(-config.actor.sizes().world // max(on.nodes - config.launch.rollout_nodes, 1))
