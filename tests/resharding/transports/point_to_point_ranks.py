"""Ranks of point-to-point swaps: python point_to_point_ranks.py FOLDER.

FOLDER/job.pt is a ``Job``. Its ranks (sources first) are forked from this process, torch being imported once; each
writes ROUND.RANK.pt, an outcome, after every round. A rank that was killed is replaced from the next round on.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from megatron_rl.errors import SwapError
from megatron_rl.resharding.layout import Layout
from megatron_rl.resharding.plan import Plan, make_plan
from megatron_rl.resharding.swap import Landing, merge_hashes
from megatron_rl.resharding.transports import point_to_point
from megatron_rl.resharding.transports.cuda_ipc import HeldOnDevice
from megatron_rl.resharding.transports.endpoints import Endpoints
from megatron_rl.resharding.transports.point_to_point import CONTROL, PointToPointDestination, PointToPointSource
from megatron_rl.resharding.transports.transport import HeldStill
from tests.conftest import PATIENCE

Tensors = dict[str, torch.Tensor]


@dataclass
class Round:
    """One swap."""

    version: int
    faults: dict[int, str] = field(default_factory=dict)  # by rank
    connect: bool = False  # over a new process group
    timeout: float = 0.0  # with connect: the new ends' deadline; 0: the job's
    overlap: bool = False  # by a plan whose matrices' rows lie over each other at the destinations


@dataclass
class Job:
    source: Layout
    destination: Layout
    held: list[Tensors]  # by source rank
    wanted: list[Tensors]  # by destination rank: what they hold at first
    rounds: list[Round]
    buffer: int = 1 << 20
    timeout: float = PATIENCE
    backend: str = "gloo"  # "nccl": rank n on GPU n
    at_once: bool = False  # hashes as in a GPU's memory


def missed(job: Job, folder: Path, number: int) -> None:
    """Wait until every destination has given this round up."""
    outcomes = [folder / f"{number}.{len(job.held) + rank}.pt" for rank in range(len(job.wanted))]
    while not all(outcome.exists() for outcome in outcomes):
        time.sleep(0.05)


def spoil(fault: str, stall: Callable[[], None]) -> None:
    """Let this process's n-th data message be wrong from here on: "corrupt n", "truncate n", "stall n", "kill n"."""
    name, _, count = fault.partition(" ")
    seen = 0
    real = {"send": point_to_point.send, "receive": point_to_point.receive}

    def message(which: str, group: Any, tensor: torch.Tensor, peer: int) -> Any:
        nonlocal seen
        if len(tensor) != CONTROL.size:
            seen += 1
            if seen == int(count):
                if name == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                elif name == "stall":
                    stall()
                elif name == "corrupt":
                    tensor[0] ^= 1
                elif name == "truncate":
                    tensor = tensor[: len(tensor) // 2]
        return real[which](group, tensor, peer)

    point_to_point.send = lambda *args: message("send", *args)
    point_to_point.receive = lambda *args: message("receive", *args)


def device_of(job: Job, rank: int) -> torch.device:
    return torch.device("cuda", rank) if job.backend == "nccl" else torch.device("cpu")


def ends_of(job: Job, rank: int, plan: Plan, buffer: int, timeout: float) -> PointToPointSource | Landing:
    sources, device = len(job.held), device_of(job, rank)
    workers = range(sources, sources + len(job.wanted))
    ends = Endpoints(range(sources), workers, buffer, timeout or job.timeout, device=device)
    if rank < sources:
        dtypes = {name: tensor.dtype for tensors in job.wanted for name, tensor in tensors.items()}
        return PointToPointSource(plan, rank, job.held[rank], dtypes, ends)
    parameters = job.wanted[rank - sources]
    destination = PointToPointDestination(plan, rank - sources, parameters, ends)
    destination.on_device |= job.at_once
    return Landing(plan, rank - sources, parameters, destination)


def owners_hashes(job: Job, plan: Plan) -> np.ndarray:
    """What the owners hash, each by itself, before the swap."""
    dtypes = {name: tensor.dtype for tensors in job.wanted for name, tensor in tensors.items()}
    still = HeldOnDevice if job.at_once or job.backend == "nccl" else HeldStill
    return merge_hashes(plan, [still(plan, r, held, dtypes).push(0) for r, held in enumerate(job.held)])


def run(job: Job, rank: int, folder: Path, first: int) -> None:
    world, sends = len(job.held) + len(job.wanted), point_to_point.send
    receives = point_to_point.receive
    for tensors in (*job.held, *job.wanted)[rank : rank + 1]:
        tensors.update({name: tensor.to(device_of(job, rank)) for name, tensor in tensors.items()})
    end: PointToPointSource | Landing | None = None
    for number, turn in list(enumerate(job.rounds))[first:]:
        if turn.connect or end is None:
            if end is not None:
                end.close()
                dist.destroy_process_group()
            meet = f"file://{folder}/meet{number}"
            patience = timedelta(seconds=PATIENCE)
            dist.init_process_group(job.backend, init_method=meet, rank=rank, world_size=world, timeout=patience)
            end = None
        fault = turn.faults.get(rank, "")
        plan, buffer, version = make_plan(job.source, job.destination), job.buffer, turn.version
        if turn.overlap:
            copies = [
                c._replace(destination_strides=(c.shape[1] - 1, 1)) if len(c.shape) == 2 else c for c in plan.copies
            ]
            plan = replace(plan, copies=tuple(copies))
        if fault == "plan":
            plan = replace(plan, copies=(plan.copies[1], plan.copies[0], *plan.copies[2:]))
        elif fault == "buffer":
            buffer *= 2
        elif fault == "version":
            version += 1
        elif fault == "late":
            missed(job, folder, number)
        elif fault:
            spoil(fault, partial(missed, job, folder, number))
        outcome: dict[str, Any] = {"error": "", "version": -1}
        end = end or ends_of(job, rank, plan, buffer, turn.timeout)
        started = time.monotonic()
        try:
            if isinstance(end, Landing):
                end.pull(version)
                end.verify(version, owners_hashes(job, plan))
                end.commit(version)
            else:
                end.push(version)
        except SwapError as error:
            outcome["error"] = str(error)
        outcome["seconds"] = time.monotonic() - started
        if isinstance(end, Landing):
            outcome |= {"version": end.version, "staging": end.transport.staging, "hashes": end.hashes}
            outcome["tensors"] = {n: t.cpu() for n, t in job.wanted[rank - len(job.held)].items()}
        else:
            outcome["staging"] = end.staging
        point_to_point.send, point_to_point.receive = sends, receives
        torch.save(outcome, folder / f"{number}.{rank}.part")
        (folder / f"{number}.{rank}.part").rename(folder / f"{number}.{rank}.pt")


def fork(job: Job, rank: int, folder: Path, first: int) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            run(job, rank, folder, first)
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    return pid


if __name__ == "__main__":
    place = Path(sys.argv[1])
    todo: Job = torch.load(place / "job.pt", weights_only=False)
    running = {fork(todo, r, place, 0): r for r in range(len(todo.held) + len(todo.wanted))}
    failed = 0
    while running:
        ended, status = os.wait()
        who = running.pop(ended)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            following = next(n for n, turn in enumerate(todo.rounds) if "kill" in turn.faults.get(who, "")) + 1
            if following < len(todo.rounds):
                running[fork(todo, who, place, following)] = who
        elif status:
            failed = 1
            for other in running:
                os.kill(other, signal.SIGTERM)
    sys.exit(failed)
