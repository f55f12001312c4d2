"""Whether ranks that hold the same part of a tensor hold the same numbers.

A plan reads each part from one of its holders, so the hashes of a swap say nothing about the others. Replicas that
have drifted apart are a mistake of the training (gradients that were not summed over all of them), and the engine then
serves the weights of one rank while others train on with theirs.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from megatron_rl.resharding.execute import flat, source_hashes
from megatron_rl.resharding.layout import Layout, row_major
from megatron_rl.resharding.plan import Copy
from megatron_rl.resharding.transports.device_hash import hashes_of


class Replicas:
    """The boxes of a layout that several ranks hold, rank by rank."""

    def __init__(self, layout: Layout) -> None:
        holders: dict[tuple[str, tuple[int, ...], tuple[int, ...]], list[tuple[int, Copy]]] = {}
        for rank, shard in enumerate(layout.ranks):
            for s in shard.segments:
                copy = Copy(
                    s.tensor, s.start, s.shape, rank, s.local, s.offset, s.strides, 0, "", 0, row_major(s.shape)
                )
                holders.setdefault((s.tensor, s.start, s.shape), []).append((rank, copy))
        shared = [held for held in holders.values() if len(held) > 1]
        self._boxes: list[list[Copy]] = [[] for _ in layout.ranks]
        self._holders: list[list[tuple[int, int]]] = []  # of each shared box: rank, and its place in the rank's boxes
        for held in shared:
            self._holders.append([(rank, len(self._boxes[rank])) for rank, _ in held])
            for rank, copy in held:
                self._boxes[rank].append(copy)
        self._names = [held[0][1].tensor for held in shared]

    def __len__(self) -> int:
        return len(self._holders)

    def hashes(self, rank: int, parameters: Mapping[str, torch.Tensor]) -> np.ndarray:
        """The uint64 hashes of a rank's shared boxes; ``parameters`` by local name are contiguous."""
        tensors = {name: flat(p) for name, p in parameters.items()}
        if any(t.is_cuda for t in tensors.values()):
            found = hashes_of(self._boxes[rank], tensors)
            return found.finish(found.begin())
        return source_hashes(self._boxes[rank], tensors, None)

    def differing(self, hashes: Sequence[np.ndarray]) -> list[tuple[str, int, int]]:
        """(tensor, rank, rank) for each shared box of which two ranks' ``hashes`` (by rank) differ."""
        found = []
        for name, holders in zip(self._names, self._holders, strict=True):
            (first, at), *others = holders
            other = next((rank for rank, place in others if hashes[rank][place] != hashes[first][at]), None)
            if other is not None:
                found.append((name, first, other))
        return found
