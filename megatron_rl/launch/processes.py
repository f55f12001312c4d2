"""The processes of a run on one of its machines: engines and trainer ranks."""

import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_rl.config import Config
from megatron_rl.launch.meeting import Job
from megatron_rl.launch.placement import LOOPBACK
from megatron_rl.rollout.embedded.client import engine_command, engine_environment
from megatron_rl.rollout.sglang.servers.hosts import HOSTS, Hosts
from megatron_rl.settings.foresight.precision import block_scales
from megatron_rl.system import machine, scratch
from megatron_rl.system.channel import ENGINES, LISTENER
from megatron_rl.system.supervision.supervisor import Process
from megatron_rl.tracking.run_folder import RunFolder


def processes(
    job: Job, config: Config, node: int, sockets: Path, listener: socket.socket | None = None
) -> list[Process]:
    """Those of a node; its embedded engines listen at Unix sockets in ``sockets`` where the job says so.

    ``listener``: of the port at which the ranks meet, on the first node.
    """
    common = {"PYTHONUNBUFFERED": "1"} | scratch.temporary(sockets) | scratch.caches(sockets)
    common |= {name: os.environ.get(name, str(size)) for name, size in machine.KEPT.items()}
    if machine.gpus():
        # megatron-core begins communication before the products that it shall overlap, and relies on that order
        common["CUDA_DEVICE_MAX_CONNECTIONS"] = "1"
        # as SGLang sets it in its servers: NCCL connects only processes that allocate alike
        common["NCCL_CUMEM_ENABLE"] = os.environ.get("NCCL_CUMEM_ENABLE", "0")
    else:
        common["TORCHDYNAMO_DISABLE"] = "1"  # megatron-core compiles small fusions at import: worth it on a GPU only
    return _engines(job, config, node, sockets, common) + _ranks(job, config, node, sockets, common, listener)


def _engines(job: Job, config: Config, node: int, sockets: Path, common: dict[str, str]) -> list[Process]:
    if not job.engines:
        return _keeper(job, config, node, common | {scratch.SCRATCH: str(sockets)})
    folder = RunFolder(job.folder).model_folder()
    return [
        Process(
            f"engine{index}",
            engine_command(config.rollout, folder, job.engines[index], config.model.dtype),
            common | engine_environment(config.rollout, job.key),
            service=True,
        )
        for index in job.placement.engines_on(node)
    ]


def _keeper(job: Job, config: Config, node: int, common: dict[str, str]) -> list[Process]:
    """Who starts SGLang's servers here, where rank 0 is elsewhere: on its own machine it does that itself."""
    keeping = [n for n in range(1, len(job.placement.hosts)) if job.placement.engines_on(n)]
    if node not in keeping:
        return []
    module = "megatron_rl.rollout.sglang.servers.keeper"
    command = [sys.executable, "-m", module, job.control, str(keeping.index(node)), job.placement.hosts[node]]
    env = common | engine_environment(config.rollout, job.key) | _interface(job.placement.hosts, node)
    return [Process("keeper", command, env, service=True)]


def _hosts(job: Job) -> dict[str, str]:
    """What rank 0 must know of SGLang's servers on other machines."""
    if not job.control:
        return {}
    at, nodes = job.placement, range(len(job.placement.hosts))
    engines, ranks = (tuple(len(dealt(node)) for node in nodes) for dealt in (at.engines_on, at.ranks_on))
    return {HOSTS: Hosts(engines, ranks, job.control, at.span).written()}


def _ranks(
    job: Job, config: Config, node: int, sockets: Path, common: dict[str, str], listener: socket.socket | None
) -> list[Process]:
    env = common | engine_environment(config.rollout, job.key) | _interface(job.placement.hosts, node)
    env |= block_scales(config, machine.gpu_capability()) if machine.gpus() else {}
    env |= {
        ENGINES: ",".join(job.engines),
        scratch.SCRATCH: str(sockets),
        "OMP_NUM_THREADS": str(config.actor.threads),
    }
    found = []
    for rank in job.placement.ranks_on(node):
        held = [listener.fileno()] if rank == 0 and listener is not None else []
        alone = {LISTENER: str(held[0])} | _hosts(job) if held else {}
        found.append(
            Process(
                f"rank{rank}",
                [sys.executable, "-m", "megatron_rl.train", str(job.folder)],
                env | job.placement.environment(rank, job.port) | alone,
                echo=rank == 0,
                follows=rank != 0,
                descriptors=held,
            )
        )
    return found


def _interface(hosts: Sequence[str], node: int) -> dict[str, str]:
    """On which network Gloo meets other nodes, SGLang's too: it would take what this machine's name stands for."""
    if tuple(hosts) == (LOOPBACK,) or "GLOO_SOCKET_IFNAME" in os.environ:
        return {}
    name = machine.interface_of(hosts[node])
    return {"GLOO_SOCKET_IFNAME": name} if name else {}
