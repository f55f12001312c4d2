"""A weight swap: owners hash what they have, a destination takes what it needs, and the two must agree.

The owners stop changing their weights; the destination brings every copy of the plan into its own memory by a
transport and hashes what landed; each owner hashes the same boxes in its memory.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from megatron_rl.resharding.execute import box, flat
from megatron_rl.resharding.families.table import FINAL_NORM
from megatron_rl.resharding.layout import Layout, ParallelSizes
from megatron_rl.resharding.megatron import megatron_layout
from megatron_rl.resharding.plan import Plan, make_plan
from megatron_rl.resharding.proof import check_parameters, prove
from megatron_rl.resharding.shared_memory import RankMemory
from megatron_rl.resharding.transport import Inbound, Owned, SharedMemory, check_arrival, owned_hashes
from megatron_rl.rollout.protocol import SwapError

__all__ = ["Landing", "Owned", "Receiver", "SwapSource", "merge_hashes", "owned_hashes"]


@dataclass(frozen=True)
class SwapSource:
    """The trainer's ranks, as a receiver must know them (picklable)."""

    hf_config: dict[str, Any]
    sizes: ParallelSizes
    fused_norms: bool
    grouped_experts: bool
    memories: Sequence[RankMemory]  # by rank

    def layout(self) -> Layout:
        """Where the ranks keep the canonical tensors."""
        return megatron_layout(
            self.hf_config, self.sizes, fused_norms=self.fused_norms, grouped_experts=self.grouped_experts
        )


class Landing:
    """A destination rank's weights: brought by a transport, proved, and unusable in between.

    ``parameters`` (contiguous, by local name) are those of rank ``rank`` of the plan's destination.
    """

    def __init__(self, plan: Plan, rank: int, parameters: Mapping[str, torch.Tensor], transport: Inbound) -> None:
        self.plan, self.transport = plan, transport
        self.indices = np.array(plan.copies_to(rank), dtype=np.int64)
        self.copies = [plan.copies[i] for i in self.indices]
        self.version, self.hashes = -1, np.empty(0, dtype=np.uint64)
        self._destinations = {name: flat(p) for name, p in parameters.items()}
        # The final norm; on a pipeline stage without it any tensor that every token passes through.
        norm = next((c for c in self.copies if c.tensor == FINAL_NORM), self.copies[-1])
        self._poisoned = box(
            self._destinations[norm.destination], norm.shape, norm.destination_strides, norm.destination_offset
        )

    @property
    def plan_hash(self) -> str:
        return self.plan.hash

    @property
    def bytes(self) -> int:
        """Bytes written by one pull."""
        return sum(c.elements * self._destinations[c.destination].element_size() for c in self.copies)

    def poison(self) -> None:
        """Make the weights unusable: no forward pass gives a number until a pull has succeeded."""
        self._poisoned.fill_(torch.nan)

    def pull(self, version: int) -> np.ndarray:
        """Bring the owners' weights; returns the hashes of what landed (uint64, one per copy to this rank).

        The weights are poisoned before and, by whatever error a pull ends, after it: one that stops half-way leaves no
        model.
        """
        self.version = -1
        self.poison()
        try:
            self.hashes = self.transport.pull(version)
        except BaseException:
            self.poison()
            raise
        self.version = version
        return self.hashes

    def verify(self, version: int, expected: np.ndarray) -> None:
        """Compare what landed with the owners' hashes (uint64, one per copy of the plan).

        Raises SwapError naming the first tensor that differs, and poisons the weights.
        """
        try:
            if version != self.version:
                raise SwapError(f"The engine holds version {self.version}, the trainer proves version {version}.")
            if len(expected) != len(self.plan.copies):
                raise SwapError(f"{len(expected)} hashes for a plan of {len(self.plan.copies)} copies.")
            check_arrival(self.copies, self.hashes, expected[self.indices], version)
        except SwapError:
            self.poison()
            raise

    def close(self) -> None:
        """Let go of the owners."""
        self.transport.close()


class Receiver(Landing):
    """An engine's half over shared memory: its parameters, the owners' memory, and the plan from one to the other.

    ``destination`` and ``parameters`` (contiguous, by local name) describe one rank of the engine, ``rank``. Building
    one makes and proves the plan; raises ProofError for parameters that are not what the layouts say.
    """

    def __init__(
        self, destination: Layout, parameters: Mapping[str, torch.Tensor], source: SwapSource, rank: int = 0
    ) -> None:
        layout = source.layout()
        if len(source.memories) != len(layout.ranks):
            raise SwapError(f"{len(source.memories)} ranks offer weights; the parallel sizes say {len(layout.ranks)}.")
        check_parameters(destination.ranks[rank], {n: tuple(p.shape) for n, p in parameters.items()}, "the engine")
        for owner, (shard, memory) in enumerate(zip(layout.ranks, source.memories, strict=True)):
            check_parameters(shard, {n: p.shape for n, p in memory.places.items()}, f"trainer rank {owner}")
        plan = make_plan(layout, destination)
        prove(plan, layout, destination)
        copies = [plan.copies[i] for i in plan.copies_to(rank)]
        destinations = {name: flat(p) for name, p in parameters.items()}
        super().__init__(plan, rank, parameters, SharedMemory(copies, source.memories, destinations))
        self.copies = copies


def merge_hashes(plan: Plan, parts: Iterable[Owned]) -> np.ndarray:
    """The owners' hashes in the plan's order (uint64). Raises SwapError unless each copy has exactly one owner."""
    merged = np.zeros(len(plan.copies), dtype=np.uint64)
    owners = np.zeros(len(plan.copies), dtype=np.int64)
    for indices, hashes in parts:
        merged[indices] = hashes
        np.add.at(owners, indices, 1)
    wrong = np.flatnonzero(owners != 1)
    if len(wrong):
        tensor = plan.copies[wrong[0]].tensor
        raise SwapError(
            f"{owners[wrong[0]]} trainer ranks gave a hash for a copy of tensor {tensor}: each copy has one owner."
        )
    return merged
