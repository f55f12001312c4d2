"""A weight swap: owners hash what they have, a destination takes what it needs, and the two must agree.

The owners stop changing their weights; the destination brings every copy of the plan into its own memory by a
transport and hashes what landed; each owner hashes the same boxes in its memory. Until then a norm that every token
passes through is NaN: its true value is written last, when all ranks of the engine are proved, as the commit record.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from megatron_rl.errors import SwapError
from megatron_rl.resharding.execute import box, flat, held_hashes
from megatron_rl.resharding.families import canonical_tensors
from megatron_rl.resharding.families.table import FINAL_NORM
from megatron_rl.resharding.layout import Layout, Padding, ParallelSizes, TensorSpec
from megatron_rl.resharding.layouts.fp8 import quantised_names, quantised_source, quantised_tensors
from megatron_rl.resharding.layouts.megatron import megatron_layout
from megatron_rl.resharding.nearest import read_by
from megatron_rl.resharding.plan import Copy, Plan, make_plan
from megatron_rl.resharding.proof import check_parameters, prove
from megatron_rl.resharding.transports.choose import Memory, Shapes, inbound
from megatron_rl.resharding.transports.meeting import Meeting
from megatron_rl.resharding.transports.point_to_point import PointToPointDestination
from megatron_rl.resharding.transports.transport import Inbound, Owned, check_arrival, owned_hashes

__all__ = ["Landing", "Owned", "Receiver", "SwapSource", "merge_hashes", "owned_hashes"]


@dataclass(frozen=True)
class SwapSource:
    """The trainer's ranks, as a receiver must know them (picklable)."""

    hf_config: dict[str, Any]
    sizes: ParallelSizes
    fused_norms: bool
    grouped_experts: bool
    memories: Sequence[Memory]  # by rank, all of one transport
    fp8: bool = False  # they offer block-quantised weights (resharding.quantise), not their own

    def layout(self) -> Layout:
        """Where the ranks keep what they offer, as canonical tensors."""
        own = self.own_layout()
        return quantised_source(own, quantised_names(self.hf_config)) if self.fp8 else own

    def own_layout(self) -> Layout:
        """Where they keep their parameters."""
        return megatron_layout(
            self.hf_config, self.sizes, fused_norms=self.fused_norms, grouped_experts=self.grouped_experts
        )

    def tensors(self) -> dict[str, TensorSpec]:
        """The canonical tensors that they offer."""
        own = canonical_tensors(self.hf_config)
        return quantised_tensors(own, quantised_names(self.hf_config)) if self.fp8 else own

    def without_memory(self) -> "SwapSource":
        """The same for somebody who cannot read the ranks' memory, or need not."""
        return replace(self, memories=[Shapes(memory.shapes) for memory in self.memories])


class Landing:
    """A destination rank's weights: brought by a transport, proved, and unusable until they are committed.

    ``pull``, ``verify``, then, once every rank of the engine has got
    so far, ``commit``; or ``abort``. ``parameters`` (contiguous, by local name) are those of rank ``rank`` of the
    plan's destination; its ``padding`` becomes zero with every pull, for what lay there may have been lost.
    """

    def __init__(
        self,
        plan: Plan,
        rank: int,
        parameters: Mapping[str, torch.Tensor],
        transport: Inbound,
        padding: Sequence[Padding] = (),
    ) -> None:
        self.plan, self.transport = plan, transport
        self.indices = np.array(plan.copies_to(rank), dtype=np.int64)
        self.copies = [plan.copies[i] for i in self.indices]
        self.version, self.hashes = -1, np.empty(0, dtype=np.uint64)
        self._destinations = {name: flat(p) for name, p in parameters.items()}
        self._padding = [self._destinations[pad.local][pad.offset : pad.offset + pad.size] for pad in padding]
        self._record = _record(self.copies)
        norm = self.copies[self._record]
        self._norm = box(
            self._destinations[norm.destination], norm.shape, norm.destination_strides, norm.destination_offset
        )
        self._true_norm: torch.Tensor | None = None  # between a pull and its commit
        self._proved = False

    @property
    def plan_hash(self) -> str:
        return self.plan.hash

    @property
    def bytes(self) -> int:
        """Bytes written by one pull."""
        return sum(c.elements * self._destinations[c.destination].element_size() for c in self.copies)

    def poison(self) -> None:
        """Make the weights unusable: no forward pass gives a number until a swap is committed."""
        self._norm.fill_(torch.nan)

    def pull(self, version: int) -> np.ndarray:
        """Bring the owners' weights; returns the hashes of what landed (uint64, one per copy to this rank).

        The weights are poisoned before and after it, by whatever error it ends: what has landed is no model yet.
        """
        self.abort()
        try:
            self.hashes = self.transport.pull(version)
            for pad in self._padding:
                pad.zero_()
            self._true_norm = self._norm.clone()
        finally:
            self.poison()
        self.version, self._proved = version, False
        return self.hashes

    def digest(self, version: int) -> np.ndarray:
        """As ``pull``, of weights that have been brought by other means: hashes what lies in the parameters."""
        self.version, self._proved = version, False
        self.hashes = held_hashes(self.copies, self._destinations)
        self._true_norm = self._norm.clone()
        self.poison()
        return self.hashes

    def verify(self, version: int, expected: np.ndarray) -> None:
        """Compare what landed with the owners' hashes (uint64, one per copy of the plan, or per one to this rank).

        Raises SwapError naming the first tensor that differs, and gives the swap up.
        """
        try:
            self._require(version)
            if len(expected) == len(self.plan.copies):
                expected = expected[self.indices]
            if len(expected) != len(self.copies):
                raise SwapError(
                    f"{len(expected)} hashes for a plan of {len(self.plan.copies)} copies, {len(self.copies)} to "
                    f"this rank."
                )
            check_arrival(self.copies, self.hashes, expected, version)
        except SwapError:
            self.abort()
            raise
        self._proved = True

    def commit(self, version: int) -> None:
        """Make the weights usable, after all ranks of the engine were proved: the last write of a swap.

        Raises SwapError, and gives the swap up, for weights that were not proved or a norm that does not hold.
        """
        try:
            self._require(version)
            if not self._proved or self._true_norm is None:
                raise SwapError(
                    f"Version {version} cannot be committed: its weights were not proved, or it was before."
                )
            self._norm.copy_(self._true_norm)
            self._true_norm = None
            landed = np.array([self.transport.digest(self._norm)], dtype=np.uint64)
            at = slice(self._record, self._record + 1)
            check_arrival(self.copies[at], landed, self.hashes[at], version)
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Give the swap up: poisoned until another one is committed."""
        self.version, self._proved, self._true_norm = -1, False, None
        self.poison()

    def close(self) -> None:
        """Let go of the owners."""
        self.transport.close()

    def _require(self, version: int) -> None:
        if version != self.version:
            raise SwapError(f"The engine holds version {self.version}, the trainer proves version {version}.")


def _record(copies: Sequence[Copy]) -> int:
    """Number of the copy that is the commit record: the final norm; on a stage without it a norm of its layers."""
    for norm in (FINAL_NORM, "norm.weight"):
        for i, c in enumerate(copies):
            if c.tensor.endswith(norm) and len(c.shape) == 1:
                return i
    return len(copies) - 1


class Receiver(Landing):
    """An engine's half: its parameters, what the owners offer, and the plan from one to the other.

    ``destination`` and ``parameters`` (contiguous, by local name) describe one rank of the engine, ``rank``. Building
    one makes and proves the plan; raises ProofError for parameters that are not what the layouts say.
    """

    def __init__(
        self,
        destination: Layout,
        parameters: Mapping[str, torch.Tensor],
        source: SwapSource,
        rank: int = 0,
    ) -> None:
        layout = source.layout()
        if len(source.memories) != len(layout.ranks):
            raise SwapError(f"{len(source.memories)} ranks offer weights; the parallel sizes say {len(layout.ranks)}.")
        check_parameters(destination.ranks[rank], {n: tuple(p.shape) for n, p in parameters.items()}, "the engine")
        for owner, (shard, memory) in enumerate(zip(layout.ranks, source.memories, strict=True)):
            check_parameters(shard, memory.shapes, f"trainer rank {owner}")
        plan = make_plan(layout, destination)
        prove(plan, layout, destination)
        transport = inbound(plan, rank, parameters, source.memories)
        super().__init__(plan, rank, parameters, transport, destination.ranks[rank].padding)
        self.rank, self.parameters, self.source = rank, parameters, layout

    def connect(self, meeting: Meeting) -> None:
        """Let the meeting's ranks send from now on, who are joining it. Raises LinkError when one does not."""
        ends = meeting.join_as_destination(self.rank)
        sent = read_by(self.plan, self.source, meeting.senders)
        self.transport = PointToPointDestination(sent, self.rank, self.parameters, ends)


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
