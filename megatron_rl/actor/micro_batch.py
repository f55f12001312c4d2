"""Packed sequences as tensors: what one forward pass of one rank computes on.

Sequences lie one after the other without padding (THD). A sequence of n tokens contributes n - 1 positions:
its tokens but the last are inputs, its tokens but the first are targets. Context parallelism needs lengths
divisible by 2 x cp and sequence parallelism a total divisible by tp: only then are padding positions added, at
the end of a sequence, where causality hides them, with weight 0.
"""

import math
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np
import torch
from megatron.core.packed_seq_params import PackedSeqParams

from megatron_rl.actor.batch import Sequence


@dataclass
class AttentionBlock:
    """Sequences of similar length that attend as one padded batch of ``count`` rows."""

    count: int
    queries: tuple[int, int] | torch.Tensor  # rows of equal length: (first, last + 1); else index [count, longest]
    keys: tuple[int, int] | torch.Tensor
    mask: torch.Tensor | None  # bool [count, 1, queries, keys]; None: causal
    valid: torch.Tensor | None  # flat positions of the real queries in the padded output; None: all

    def rows(self, x: torch.Tensor, where: tuple[int, int] | torch.Tensor) -> torch.Tensor:
        """[t, heads, d] -> [count, heads, longest, d]."""
        if isinstance(where, tuple):
            return x[where[0] : where[1]].view(self.count, -1, *x.shape[1:]).transpose(1, 2)
        return x.index_select(0, where.view(-1)).view(*where.shape, *x.shape[1:]).transpose(1, 2)

    def flat(self, out: torch.Tensor) -> torch.Tensor:
        """[count, heads, longest, d] -> [t, heads * d]."""
        flat = out.transpose(1, 2).reshape(-1, out.shape[1] * out.shape[3])
        return flat if self.valid is None else flat.index_select(0, self.valid)


@dataclass
class PackedSequences(PackedSeqParams):
    """Megatron's packing parameters, and the blocks that the local attention works on."""

    blocks: list[AttentionBlock] = field(default_factory=list)


@dataclass
class MicroBatch:
    """One rank's positions; t is their number on this context-parallel rank."""

    inputs: torch.Tensor  # int64 [1, t]
    targets: torch.Tensor  # int64 [t]
    positions: torch.Tensor  # int64 [1, t]
    packed: PackedSequences
    trained: torch.Tensor  # int64 [n]: positions with a non-zero weight
    columns: dict[str, torch.Tensor]  # float32 [n], at the trained positions

    def to(self, device: torch.device) -> "MicroBatch":
        """The same on another device."""
        for name in ("inputs", "targets", "positions", "trained"):
            setattr(self, name, getattr(self, name).to(device))
        self.columns = {k: v.to(device) for k, v in self.columns.items()}
        for name in ("cu_seqlens_q", "cu_seqlens_kv"):
            setattr(self.packed, name, getattr(self.packed, name).to(device))
        for block in self.packed.blocks:
            for name in ("queries", "keys", "mask", "valid"):
                value = getattr(block, name)
                if isinstance(value, torch.Tensor):
                    setattr(block, name, value.to(device))
        return self


def build(
    sequences: Seq[Sequence],
    *,
    columns: Seq[str],
    cp_rank: int = 0,
    cp_size: int = 1,
    multiple: int = 1,
    at_least: int = 0,
) -> MicroBatch:
    """Pack sequences for one rank.

    ``columns`` are carried along, ``weight`` among them. ``multiple`` divides the number of positions per
    context-parallel rank; there are ``at_least`` that many. An empty list gives one padding sequence of weight 0: a
    rank without work still takes part in the collectives.
    """
    sequences = sorted(sequences, key=len, reverse=True)  # equal lengths side by side: attention without copies
    unit = 2 * cp_size if cp_size > 1 else 1
    granule = math.lcm(unit, multiple * cp_size)
    padded = [-(-max(len(s) - 1, 1) // unit) * unit for s in sequences]
    wanted = max(sum(padded), at_least * cp_size, 1)
    if rest := -(-wanted // granule) * granule - sum(padded):
        padded.append(rest)  # a sequence of padding
    pieces: dict[str, list[np.ndarray]] = {name: [] for name in ("input", "target", "position", *columns)}
    for i, length in enumerate(padded):
        own = _zigzag(length, cp_rank, cp_size)
        tokens = sequences[i].tokens if i < len(sequences) else np.zeros(0, dtype=np.int64)
        pieces["input"].append(_padded(tokens[:-1], length)[own])
        pieces["target"].append(_padded(tokens[1:], length)[own])
        pieces["position"].append(own)
        for name in columns:
            column = sequences[i].columns[name][1:] if i < len(sequences) else np.zeros(0, dtype=np.float32)
            pieces[name].append(_padded(column, length)[own])
    flat = {name: torch.from_numpy(np.concatenate(parts)) for name, parts in pieces.items()}
    trained = flat["weight"].nonzero().view(-1)
    cu_seqlens = torch.tensor([0, *np.cumsum(padded)], dtype=torch.int32)
    packed = PackedSequences(
        qkv_format="thd",
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_kv=cu_seqlens,
        max_seqlen_q=max(padded),
        max_seqlen_kv=max(padded),
        blocks=_blocks(padded, cp_rank, cp_size),
    )
    return MicroBatch(
        inputs=flat["input"].view(1, -1),
        targets=flat["target"],
        positions=flat["position"].view(1, -1),
        packed=packed,
        trained=trained,
        columns={name: flat[name].float()[trained] for name in columns},
    )


def _padded(values: np.ndarray, length: int) -> np.ndarray:
    return np.concatenate([values, np.zeros(length - len(values), dtype=values.dtype)])


def _zigzag(length: int, rank: int, size: int) -> np.ndarray:
    """Positions of one sequence that a context-parallel rank holds: chunks rank and 2 size - 1 - rank of 2 size."""
    if size == 1:
        return np.arange(length)
    chunk = length // (2 * size)
    first, last = rank * chunk, (2 * size - 1 - rank) * chunk
    return np.concatenate([np.arange(first, first + chunk), np.arange(last, last + chunk)])


def _blocks(lengths: list[int], rank: int, size: int) -> list[AttentionBlock]:
    """Batch neighbours whose lengths differ by less than a quarter (lengths come sorted, longest first)."""
    starts = np.concatenate([[0], np.cumsum(lengths)])
    blocks, i = [], 0
    while i < len(lengths):
        j = i
        while j < len(lengths) and 0.75 * lengths[i] <= lengths[j] <= lengths[i]:
            j += 1
        if size > 1:
            blocks.append(_context_parallel_block(starts // size, lengths[i:j], i, rank, size))
        elif len(set(lengths[i:j])) == 1:
            span = (int(starts[i]), int(starts[j]))
            blocks.append(AttentionBlock(j - i, span, span, None, None))
        else:
            index = starts[i:j, None] + np.minimum(np.arange(lengths[i])[None], np.array(lengths[i:j])[:, None] - 1)
            valid = (np.arange(lengths[i])[None] < np.array(lengths[i:j])[:, None]).reshape(-1).nonzero()[0]
            where = torch.from_numpy(index)
            blocks.append(AttentionBlock(j - i, where, where, None, torch.from_numpy(valid)))
        i = j
    return blocks


def _context_parallel_block(starts: np.ndarray, lengths: list[int], first: int, rank: int, size: int) -> AttentionBlock:
    """Queries are this rank's; keys are all ranks', gathered rank after rank. ``starts`` are per-rank offsets."""
    total, longest = int(starts[-1]), lengths[0]
    queries, keys, masks, valid = [], [], [], []
    for row, length in enumerate(lengths):
        own, start = _zigzag(length, rank, size), int(starts[first + row])
        order = np.empty(length, dtype=np.int64)  # where position p of the sequence lies among the gathered keys
        for r in range(size):
            order[_zigzag(length, r, size)] = r * total + start + np.arange(length // size)
        index = np.minimum(np.arange(longest // size), length // size - 1)
        queries.append(start + index)
        keys.append(order[np.minimum(np.arange(longest), length - 1)])
        masks.append(own[index][:, None] >= np.arange(longest)[None])
        valid.append(row * (longest // size) + np.arange(length // size))
    return AttentionBlock(
        len(lengths),
        torch.from_numpy(np.stack(queries)),
        torch.from_numpy(np.stack(keys)),
        torch.from_numpy(np.stack(masks))[:, None],
        torch.from_numpy(np.concatenate(valid)),
    )
