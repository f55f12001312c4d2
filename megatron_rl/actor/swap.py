"""The trainer's half of a weight swap: every rank offers its live weights, the engine takes what it needs."""

import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_rl.actor import platform
from megatron_rl.actor.actor import Actor, parallel_sizes
from megatron_rl.resharding.export import export_hf
from megatron_rl.resharding.plan import make_plan
from megatron_rl.resharding.proof import prove
from megatron_rl.resharding.replicas import Replicas
from megatron_rl.resharding.shared_memory import publish
from megatron_rl.resharding.swap import SwapSource, merge_hashes, owned_hashes
from megatron_rl.rollout.protocol import Attached, Engine, SwapError


class Swap:
    """Collective: all ranks build and call it; ``engine`` is given on rank 0 only."""

    def __init__(self, actor: Actor, engine: Engine | None) -> None:
        self.actor, self.engine = actor, engine
        # On a GPU the engine reads a copy in host memory that every swap refreshes; on a CPU the live weights.
        self.offered = {n: p.cpu() for n, p in actor.parameters().items()} if platform.on_gpu() else actor.parameters()
        memories: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
        dist.gather_object(publish(self.offered), memories)
        sizes = parallel_sizes(actor.config)
        self.source = SwapSource(actor.hf_config, sizes, actor.fused, actor.fused, memories or [])
        attached: list[Attached | None] = [engine.attach(self.source) if engine is not None else None]
        dist.broadcast_object_list(attached, src=0)
        there = attached[0]
        assert there is not None
        layout = self.source.layout()
        self.plan, self.replicas = make_plan(layout, there.layout), Replicas(layout)
        held = {c.destination: there.dtypes.get(c.destination) for c in self.plan.copies}
        self.dtypes = {local: getattr(torch, dtype) if dtype else actor.dtype for local, dtype in held.items()}
        if engine is not None:
            prove(self.plan, layout, there.layout)
            if there.plan_hash != self.plan.hash:
                raise SwapError(
                    f"The engine made plan {there.plan_hash}, the trainer {self.plan.hash}: their versions differ."
                )

    def offer(self) -> None:
        """Let every rank's memory show its present weights."""
        if platform.on_gpu():
            for name, p in self.actor.parameters().items():
                self.offered[name].copy_(p)
        dist.barrier()

    def __call__(self, version: int) -> dict[str, float]:
        """Bring the engine to the actor's weights, called ``version``, and prove it; metrics on rank 0.

        Returns only when the engine has copied everything, so the weights may change afterwards.
        """
        started = time.perf_counter()
        self.offer()
        if self.engine is not None:
            self.engine.begin_swap(version)
        rank = dist.get_rank()
        mine = (
            owned_hashes(self.plan, rank, self.offered, self.dtypes),
            self.replicas.hashes(rank, self.offered),
        )
        hashes: list[Any] | None = [None] * dist.get_world_size() if self.engine is not None else None
        dist.gather_object(mine, hashes)
        metrics: dict[str, float] = {}
        if self.engine is not None:
            assert hashes is not None
            report = self.engine.finish_swap(version, merge_hashes(self.plan, [owned for owned, _ in hashes]))
            metrics = {"time/swap": time.perf_counter() - started, "swap_bytes": float(report.bytes)}
            metrics |= {f"time/swap_{phase}": seconds for phase, seconds in report.phases.items()}
            metrics |= self._drift(version, [held for _, held in hashes])
        dist.barrier()
        return metrics | {"weight_version": float(version)}

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
        self.offer()
        if dist.get_rank() == 0:
            export_hf(target, self.source, carry_from=model_folder)
        dist.barrier()
