"""Which GPUs have trainer ranks, engines, both or nothing, as a run deals them out. Imports no torch."""

from collections import Counter
from dataclasses import dataclass, replace

from megatron_rl.config import Config
from megatron_rl.rollout.sglang.servers.gpus import engines_on, shared
from megatron_rl.settings.foresight.hardware import Hardware


@dataclass(frozen=True)
class Places:
    """Of all nodes: ranks and engines are dealt out in equal shares (``launch.placement``)."""

    crowd: int = 1  # engines that compute on one GPU, at most
    together: bool = False  # an engine and a trainer rank share a GPU
    apart: int = 0  # engines that would have GPUs to themselves


def places(config: Config, on: Hardware) -> Places:
    """Where engines compute that are started on GPUs, beside the ranks or on theirs."""
    rollout, serving = config.rollout, config.launch.rollout_nodes
    if not on.gpus or rollout.engine != "sglang" or not config.generates() or rollout.sglang.urls:
        return Places()
    ranks = 0 if serving else local_ranks(config, on)
    span = max(rollout.sglang.nodes, 1)  # of an engine, all of which have workers of the same engines
    groups = max((serving or on.nodes) // span, 1)
    taken = engines_on(replace(rollout, engines=-(-rollout.engines // groups)), ranks, on.gpus)
    crowd = max(Counter(gpu for gpus in taken for gpu in gpus).values(), default=1)
    return Places(crowd, shared(taken, ranks), groups * len({gpus.start for gpus in taken}))


def local_ranks(config: Config, on: Hardware) -> int:
    """Trainer ranks of each node that trains."""
    return -(-config.actor.sizes().world // max(on.nodes - config.launch.rollout_nodes, 1))
