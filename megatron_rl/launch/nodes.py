"""Which machines a command has been given, and which of them this one is: by Slurm, by torchrun, or this one alone."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from megatron_rl.errors import InputError
from megatron_rl.launch.config import LaunchConfig


@dataclass(frozen=True)
class Nodes:
    """``count`` machines on each of which one supervisor runs; this one's is number ``index``."""

    count: int = 1
    index: int = 0
    job: str = ""  # a name that this attempt's supervisors have in common, and no other job here has
    names: tuple[str, ...] = ()  # where they are known
    number: int = 0  # of the job, from which ports are counted

    def name(self, index: int) -> str:
        """What messages call a node."""
        return f"node {index}" + (f" ({self.names[index]})" if index < len(self.names) else "")

    def again(self, command: str) -> str:
        """How ``megatron-rl train …`` is started on as many machines."""
        arguments = command.partition(" train ")[2]
        if self.count == 1:
            return command
        if self.job.startswith("slurm"):
            return f"sbatch --nodes={self.count} slurm/train.sbatch {arguments}"
        return f"torchrun --nnodes {self.count} --nproc-per-node 1 … -m megatron_rl.cli train {arguments}"


ALONE = Nodes()


def given(config: LaunchConfig, env: Mapping[str, str] = os.environ) -> Nodes:
    """The machines of this command.

    Raises InputError where ``launch.nodes`` is not what Slurm or torchrun has given, where several commands run on a
    node, and where nobody has started one on every node.
    """
    found = _from_slurm(env) or _from_torchrun(env) or Nodes()
    allocated = env.get("SLURM_JOB_NUM_NODES", "1")
    if not found.job and not config.nodes and allocated != "1":
        raise InputError(
            f"This job has {allocated} nodes: start the command on each (srun --ntasks-per-node=1), or set "
            "launch.nodes=1 to leave the others idle."
        )
    if config.nodes not in (0, found.count):
        raise InputError(_otherwise(config.nodes, found, env))
    return found


def planned(config: LaunchConfig, env: Mapping[str, str] = os.environ) -> int:
    """How many machines a run has that is to be checked: as asked for, or as this job has been given."""
    if config.nodes:
        return config.nodes
    found = _from_slurm(env) or _from_torchrun(env)
    return found.count if found else int(env.get("SLURM_JOB_NUM_NODES", "1"))


def _from_slurm(env: Mapping[str, str]) -> Nodes | None:
    """A step of srun; None outside of one, where a command is alone whatever the job has been given."""
    if "SLURM_STEP_ID" not in env or not env["SLURM_STEP_ID"].isdecimal():
        return None
    count, tasks = int(env["SLURM_STEP_NUM_NODES"]), int(env["SLURM_STEP_NUM_TASKS"])
    if tasks != count:
        raise InputError(
            f"srun has started this command {tasks} times on {count} node{'s' if count > 1 else ''}: start it once on "
            "each (srun --ntasks-per-node=1); it starts the processes of its node itself."
        )
    attempt = env.get("SLURM_RESTART_COUNT", "0")
    job = f"slurm{env['SLURM_JOB_ID']}.{env['SLURM_STEP_ID']}.{attempt}"
    names = _host_names(env.get("SLURM_STEP_NODELIST", ""))
    return Nodes(count, int(env["SLURM_NODEID"]), job, names, int(env["SLURM_JOB_ID"]))


def _from_torchrun(env: Mapping[str, str]) -> Nodes | None:
    if "TORCHELASTIC_RUN_ID" not in env:
        return None
    if (each := int(env["LOCAL_WORLD_SIZE"])) != 1:
        raise InputError(
            f"torchrun has started this command {each} times on a node: start it once (--nproc-per-node 1); it starts "
            "the ranks of its node itself."
        )
    job = f"torchrun-{env['TORCHELASTIC_RUN_ID']}.{env.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    return Nodes(int(env["GROUP_WORLD_SIZE"]), int(env["GROUP_RANK"]), job, number=int(env["MASTER_PORT"]))


def _host_names(listed: str) -> tuple[str, ...]:
    """node[1-3],gpu7 -> node1, node2, node3, gpu7, as Slurm itself reads it; nothing where its commands are missing."""
    if not listed or not shutil.which("scontrol"):
        return ()
    answer = subprocess.run(["scontrol", "show", "hostnames", listed], capture_output=True, encoding="utf-8")
    return tuple(answer.stdout.split())


def _otherwise(asked: int, found: Nodes, env: Mapping[str, str]) -> str:
    if found.job:
        return (
            f"launch.nodes={asked}, but this command has been started on {found.count}: ask for as many "
            f"(sbatch --nodes={asked}), or leave launch.nodes at 0."
        )
    if "SLURM_JOB_ID" in env:
        return f"launch.nodes={asked}: start the command on every node, by srun --nodes={asked} --ntasks-per-node=1."
    return (
        f"launch.nodes={asked}, and this command runs on this machine alone: have Slurm start it on every node "
        f"(sbatch --nodes={asked} slurm/train.sbatch), or torchrun (torchrun --nnodes {asked} --nproc-per-node 1 "
        "--rdzv-backend c10d --rdzv-endpoint HOST:PORT -m megatron_rl.cli train …)."
    )
