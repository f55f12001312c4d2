"""The two halves of a weight swap over shared memory: owners hash what they have, a receiver copies what it needs.

A swap: the owners stop changing their weights; the receiver pulls every copy of the plan into its own memory and
hashes what landed; each owner hashes the same boxes in its memory; the two must agree.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from megatron_rl.resharding.execute import flat, pull, source_hashes
from megatron_rl.resharding.families.table import FINAL_NORM
from megatron_rl.resharding.layout import Layout, ParallelSizes
from megatron_rl.resharding.megatron import megatron_layout
from megatron_rl.resharding.plan import Plan, make_plan
from megatron_rl.resharding.proof import check_parameters, prove
from megatron_rl.resharding.shared_memory import RankMemory
from megatron_rl.rollout.protocol import SwapError

Owned = tuple[np.ndarray, np.ndarray]  # indices into the plan's copies (int64), their hashes (uint64)


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


class Receiver:
    """An engine's half: its parameters, the owners' memory, and the plan from one to the other.

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
        self.plan = make_plan(layout, destination)
        prove(self.plan, layout, destination)
        self.indices = np.array(self.plan.copies_to(rank), dtype=np.int64)
        self.copies = [self.plan.copies[i] for i in self.indices]
        self.version, self.hashes = -1, np.empty(0, dtype=np.uint64)
        self._destinations = {name: flat(p) for name, p in parameters.items()}
        self._maps = [memory.open() for memory in source.memories]
        self._sources = {(r, name): t for r, mapped in enumerate(self._maps) for name, t in mapped.tensors.items()}
        norm = next(c for c in self.copies if c.tensor == FINAL_NORM)
        self._final_norm = self._destinations[norm.destination].narrow(0, norm.destination_offset, norm.elements)

    @property
    def plan_hash(self) -> str:
        return self.plan.hash

    @property
    def bytes(self) -> int:
        """Bytes written by one pull."""
        return sum(c.elements * self._destinations[c.destination].element_size() for c in self.copies)

    def poison(self) -> None:
        """Make the engine's weights unusable: no forward pass gives a number until a pull has succeeded."""
        self._final_norm.fill_(torch.nan)

    def pull(self, version: int) -> np.ndarray:
        """Copy the owners' weights; returns the hashes of what landed (uint64, one per copy to this rank).

        The final norm is poisoned first and written after all layers: a pull that stops half-way leaves no model.
        """
        self.version = -1
        self.poison()
        self.hashes = pull(self.copies, self._sources, self._destinations)
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
            wrong = np.flatnonzero(expected[self.indices] != self.hashes)
            if len(wrong):
                c = self.copies[wrong[0]]
                raise SwapError(
                    f"Tensor {' and '.join(c.tensors)} did not arrive in version {version}: what landed in "
                    f"{c.destination} is not what trainer rank {c.source_rank} holds in {c.source} "
                    f"({len(wrong)} of {len(self.copies)} copies differ)."
                )
        except SwapError:
            self.poison()
            raise

    def close(self) -> None:
        """Let go of the owners' memory."""
        self._sources.clear()
        for mapped in self._maps:
            mapped.close()


def owned_hashes(
    plan: Plan,
    rank: int,
    parameters: Mapping[str, torch.Tensor],
    dtypes: Mapping[str, torch.dtype] | torch.dtype | None = None,
) -> Owned:
    """An owner's half: the hashes of its boxes, computed from its live parameters (contiguous, by local name).

    ``dtypes`` is what the engine holds (see ``source_hashes``); None: the parameters' own.
    """
    indices = plan.copies_from(rank)
    tensors = {name: flat(p) for name, p in parameters.items()}
    return np.array(indices, dtype=np.int64), source_hashes([plan.copies[i] for i in indices], tensors, dtypes)


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
