"""The trainer's half of a weight swap: every rank offers its live weights, the engine takes what it needs."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_rl.actor import accelerator
from megatron_rl.actor.groups import barrier, gather, share
from megatron_rl.actor.trainer import Actor
from megatron_rl.errors import SwapError
from megatron_rl.resharding.folders.export import export_hf, needed_from
from megatron_rl.resharding.nearest import readers
from megatron_rl.resharding.plan import make_plan
from megatron_rl.resharding.proof import prove
from megatron_rl.resharding.replicas import Replicas
from megatron_rl.resharding.swap import SwapSource, merge_hashes
from megatron_rl.resharding.terms import Attached, Reach
from megatron_rl.resharding.transports.choose import offer, outbound
from megatron_rl.resharding.transports.shared_memory import publish, store
from megatron_rl.rollout.protocol import Engine
from megatron_rl.swap.published import Offered, crowded, packed
from megatron_rl.swap.sender import Sender, held_dtypes
from megatron_rl.system import machine


class Swap:
    """Collective: all ranks build and call it; ``engine`` is given on rank 0 only."""

    def __init__(self, actor: Actor, engine: Engine | None) -> None:
        self.actor, self.engine = actor, engine
        places = gather(machine.place())
        reach: Reach = share(engine and engine.reach(places))
        sizes, rank = actor.config.sizes(), dist.get_rank()
        source = SwapSource(actor.hf_config, sizes, actor.fused, actor.fused, [], reach.fp8)
        own, layout = source.own_layout(), source.layout()
        self.offered = Offered(actor, own, reach.transport, reach.fp8)
        self.source = replace(source, memories=gather(offer(reach, self.offered.tensors)))
        for session, near in reach.sessions:
            if rank in readers(layout, near):
                Sender(layout, rank, self.offered.tensors, actor.dtype).start(reach.control, session)
        there: Attached = share(engine and engine.attach(self.source))
        self.plan, self.replicas = make_plan(layout, there.layout), Replicas(own)
        dtypes = held_dtypes(self.plan, there.dtypes, actor.dtype)
        self.outbound = outbound(reach, self.plan, rank, self.offered.tensors, dtypes)
        self.colocated = reach.colocated
        self.readable = reach.transport == "shared_memory" and not reach.fp8  # by rank 0, as Hugging Face tensors
        if engine is not None:
            prove(self.plan, layout, there.layout)
            if there.plan_hash != self.plan.hash:
                raise SwapError(
                    f"The engine made plan {there.plan_hash}, the trainer {self.plan.hash}: their versions differ."
                )

    def __call__(self, version: int) -> dict[str, float]:
        """Bring the engine to the actor's weights, called ``version``, and prove it; metrics on rank 0.

        Returns only when the engine has copied everything, so the weights may change afterwards.
        """
        started = time.perf_counter()
        self.offered.refresh()
        if self.colocated:
            accelerator.give_back_memory()
        accelerator.settle()  # those who read the weights know nothing of this rank's stream, which wrote them
        barrier()
        owned = self.outbound.push(version)  # before generation stands still
        if self.engine is not None:
            self.engine.begin_swap(version)
        mine = owned, self.replicas.hashes(dist.get_rank(), self.actor.parameters())
        hashes = gather(mine)
        metrics: dict[str, float] = {}
        if self.engine is not None:
            report = self.engine.finish_swap(version, merge_hashes(self.plan, [owned for owned, _ in hashes]))
            metrics = {"time/swap": time.perf_counter() - started, "swap_bytes": float(report.bytes)}
            metrics |= {f"time/swap_{phase}": seconds for phase, seconds in report.phases.items()}
            metrics |= self._drift(version, [held for _, held in hashes])
        barrier()
        return metrics | {"weight_version": float(version)}

    @property
    def plan_hash(self) -> str:
        """Of the plan that every swap follows."""
        return self.plan.hash

    def close(self) -> None:
        """Remove what was written for the engines."""
        self.outbound.close()

    def _drift(self, version: int, hashes: list[Any]) -> dict[str, float]:
        """Say so when ranks that hold the same weights hold different numbers: the engine has those of one of them."""
        differing = self.replicas.differing(hashes)
        if differing:
            name, one, other = differing[0]
            print(
                f"warning: in version {version} trainer ranks {one} and {other} hold different values of {name} "
                f"({len(differing)} of {len(self.replicas)} shared parts differ): gradients were not summed alike.",
                flush=True,
            )
        return {"replicas_differ": float(len(differing))}

    def export(self, target: Path, model_folder: Path) -> None:
        """Write the present weights as a Hugging Face folder, with the tokenizer of ``model_folder``."""
        if not self.readable:
            _export(self.actor, self.source, target, model_folder)
            return
        self.offered.refresh()  # waits for the GPU, where there is one: these are copies on the host
        barrier()
        if dist.get_rank() == 0:
            export_hf(target, self.source, carry_from=model_folder)
        barrier()


class Alone:
    """A ``Swap``'s place in a run that generates nothing: there is no engine, and weights only go into folders."""

    plan_hash = ""

    def __init__(self, actor: Actor) -> None:
        self.actor = actor
        self.source = SwapSource(actor.hf_config, actor.config.sizes(), actor.fused, actor.fused, [])

    def __call__(self, version: int) -> dict[str, float]:
        """Nobody waits for the weights."""
        return {}

    def close(self) -> None:
        """Nothing was written for anybody."""

    def export(self, target: Path, model_folder: Path) -> None:
        """As ``Swap.export``."""
        _export(self.actor, self.source, target, model_folder)


def _export(actor: Actor, source: SwapSource, target: Path, model_folder: Path) -> None:
    """Write the weights through copies that rank 0 can read: in memory, in files where a rank is on another machine."""
    held, rank = actor.parameters(), dist.get_rank()
    places = share(gather(machine.place()))
    near = [place == places[0] for place in places]
    if accelerator.on_gpu() or crowded(held):
        held = packed(held, torch.device("cpu"))  # alive until it is written
    beside = target.with_name(f".{target.name}.rank{rank}")
    if near[rank]:
        offered = publish(held)
    else:
        wanted = needed_from(source.own_layout(), near)[rank]
        offered = store({name: held[name] for name in held if name in wanted}, beside)
    source = replace(source, memories=gather(offered), fp8=False)
    try:
        if rank == 0:
            export_hf(target, source, carry_from=model_folder)
        barrier()
    finally:
        beside.unlink(missing_ok=True)
