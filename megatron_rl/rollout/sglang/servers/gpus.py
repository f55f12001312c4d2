"""Which GPUs of the trainer's machine the servers that it starts compute on. Imports no torch."""

from megatron_rl.rollout.config import RolloutConfig
from megatron_rl.system import machine


def first_gpus(world: int, workers: int, engines: int, gpus: int, colocated: bool) -> list[int]:
    """The first GPU of each engine of ``workers`` workers; the trainer's ranks have the first ``world`` of ``gpus``.

    Colocated engines lie on the trainer's, others beside them as long as one fits there. Where GPUs run out, engines
    begin again at the first that they may have.
    """
    beside = range(world, gpus)
    allowed = range(gpus) if colocated or len(beside) < workers else beside
    places = max(len(allowed) // workers, 1)
    return [allowed.start + index % places * workers for index in range(engines)]


def engine_gpus(rollout: RolloutConfig, world: int) -> list[range]:
    """This machine's GPUs of each server that is started here; empty without a GPU, or where servers run already."""
    return engines_on(rollout, world, len(machine.gpus()))


def engines_on(rollout: RolloutConfig, world: int, gpus: int) -> list[range]:
    """The same of a machine of so many GPUs."""
    options = rollout.sglang
    if not gpus or options.urls:
        return []
    workers = max(options.tensor_parallel // max(options.nodes, 1), 1)
    given = {name.replace("-", "_"): value for name, value in options.args.items()}.get("base_gpu_id")
    if isinstance(given, int):
        firsts = [given] * rollout.engines
    else:
        firsts = first_gpus(world, workers, rollout.engines, gpus, options.colocated)
    return [range(first, first + workers) for first in firsts]


def shared(engines: list[range], ranks: int) -> bool:
    """Whether an engine computes on a GPU of the trainer's first ``ranks``."""
    return any(gpus.start < ranks for gpus in engines)
