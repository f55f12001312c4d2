"""Transports: how a plan's copies get from the ranks that own the weights into the memory of the ranks that want them.

A transport has two ends. ``Outbound.push`` and ``Inbound.pull`` run at the same time, once per swap, on every source
and every destination rank. Where the destination reads the source's memory (in one process, or shared memory) the
source's end only holds still and hashes what it owns. Either way each side hashes the copies from its own memory.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch

from megatron_rl.errors import SwapError
from megatron_rl.resharding.execute import Pull, digest, flat, source_hashes
from megatron_rl.resharding.plan import Copy, Plan
from megatron_rl.resharding.transports.shared_memory import RankMemory

Owned = tuple[np.ndarray, np.ndarray]  # indices into the plan's copies (int64), their hashes (uint64)
Dtypes = Mapping[str, torch.dtype] | torch.dtype | None  # the destination's: by its local name, one, the source's own


class Inbound(Protocol):
    """A destination rank's end."""

    def pull(self, version: int) -> np.ndarray:
        """Bring every copy to this rank; returns the uint64 hashes of what landed, in the plan's order.

        Raises SwapError naming the tensor or the peer that failed; what was written by then is no model.
        """
        ...

    def digest(self, tensor: torch.Tensor) -> int:
        """The hash of one tensor in the destination's memory, as ``pull`` computes them."""
        ...

    def close(self) -> None:
        """Let go of the sources."""
        ...


class Outbound(Protocol):
    """A source rank's end."""

    def push(self, version: int) -> Owned:
        """Give away the copies that this rank owns, and return their hashes.

        Raises SwapError naming the tensor or the peer that failed.
        """
        ...

    def close(self) -> None:
        """Let go of the destinations, and remove what was written for them."""
        ...


def owned_hashes(plan: Plan, rank: int, parameters: Mapping[str, torch.Tensor], dtypes: Dtypes = None) -> Owned:
    """An owner's half: the hashes of its boxes, computed from its live parameters (contiguous, by local name).

    ``dtypes`` is what the engine holds (see ``source_hashes``); None: the parameters' own.
    """
    indices = plan.copies_from(rank)
    tensors = {name: flat(p) for name, p in parameters.items()}
    return np.array(indices, dtype=np.int64), source_hashes([plan.copies[i] for i in indices], tensors, dtypes)


class HeldStill:
    """The ``Outbound`` end of transports that read the source's memory: its weights must not change meanwhile."""

    def __init__(self, plan: Plan, rank: int, parameters: Mapping[str, torch.Tensor], dtypes: Dtypes = None) -> None:
        self._plan, self._rank, self._parameters, self._dtypes = plan, rank, parameters, dtypes

    def push(self, version: int) -> Owned:
        """Hash what this rank owns."""
        return owned_hashes(self._plan, self._rank, self._parameters, self._dtypes)

    def close(self) -> None:
        """Nothing to let go of."""


class InProcess:
    """The ``Inbound`` end that reads tensors of its own process: ``sources`` 1-D, by (rank, local name)."""

    digest = staticmethod(digest)

    def __init__(
        self,
        copies: Sequence[Copy],
        sources: Mapping[tuple[int, str], torch.Tensor],
        destinations: Mapping[str, torch.Tensor],
    ) -> None:
        self._pull: Pull | None = Pull(copies, sources, destinations)

    def pull(self, version: int) -> np.ndarray:
        """Copy, and hash what landed. Raises SwapError after ``close``."""
        if self._pull is None:
            raise SwapError(f"Version {version} cannot be read: this end was closed.")
        return self._pull()

    def close(self) -> None:
        """Let go of the sources' tensors."""
        self._pull = None


class Loaded:
    """The ``Inbound`` end of weights that somebody else loads: they are hashed where they lie, never pulled."""

    digest = staticmethod(digest)

    def pull(self, version: int) -> np.ndarray:
        """Raises SwapError."""
        raise SwapError(f"Version {version} cannot be pulled: this engine's weights are loaded by the server itself.")

    def close(self) -> None:
        """Nothing to let go of."""


class SharedMemory(InProcess):
    """The ``Inbound`` end that reads memory published by processes of the same machine (by source rank)."""

    def __init__(
        self, copies: Sequence[Copy], memories: Sequence[RankMemory], destinations: Mapping[str, torch.Tensor]
    ) -> None:
        self._maps = [memory.open() for memory in memories]
        sources = {(r, name): t for r, mapped in enumerate(self._maps) for name, t in mapped.tensors.items()}
        super().__init__(copies, sources, destinations)

    def close(self) -> None:
        """Let go of the owners' memory."""
        super().close()
        for mapped in self._maps:
            mapped.close()


def check_arrival(copies: Sequence[Copy], landed: np.ndarray, expected: np.ndarray, version: int) -> None:
    """Compare two sides' hashes (uint64, one per copy). Raises SwapError naming the first tensor that differs."""
    wrong = np.flatnonzero(expected != landed)
    if len(wrong):
        c = copies[wrong[0]]
        raise SwapError(
            f"Tensor {' and '.join(c.tensors)} did not arrive in version {version}: what landed in "
            f"{c.destination} is not what trainer rank {c.source_rank} holds in {c.source} "
            f"({len(wrong)} of {len(copies)} copies differ)."
        )
