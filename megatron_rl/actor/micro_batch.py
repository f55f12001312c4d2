"""Packed sequences as tensors: what one forward pass of one rank computes on.

Sequences lie one after the other without padding (THD). A sequence of n tokens contributes n - 1 positions:
its tokens but the last are inputs, its tokens but the first are targets. Context parallelism needs lengths
divisible by 2 x cp and sequence parallelism a total divisible by tp: only then are padding positions added, at
the end of a sequence, where causality hides them, with weight 0.

The completions of one prompt may share it: its positions are there once, and its last one predicts the first token
of every completion.
"""

import math
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed as dist
from megatron.core.packed_seq_params import PackedSeqParams

from megatron_rl.actor.rows import IMITATE, TrainingRow


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
    """Megatron's packing parameters, the blocks that the local attention works on, and the experts to replay."""

    blocks: list[AttentionBlock] = field(default_factory=list)
    # int64 [k]: where the keys lie that the queries of each sequence see, one sequence after the other, and a shared
    # prompt's again for each completion; cu_seqlens_kv counts them. None: no prompt is shared, each sees its own
    keys: torch.Tensor | None = None
    # int16 [t, layers x top_k], on the host: a layer takes what it needs; -1: the router's own choice. None: all are
    experts: torch.Tensor | None = None


@dataclass
class MicroBatch:
    """One rank's positions; t is their number on this context-parallel rank."""

    inputs: torch.Tensor  # int64 [1, t]
    positions: torch.Tensor  # int64 [1, t]
    packed: PackedSequences
    trained: torch.Tensor  # int64 [n + h]: which of the t positions predict a token of non-zero weight, then h imitated
    targets: torch.Tensor  # int64 [n + h]: that token
    columns: dict[str, torch.Tensor]  # float32 [n]: its numbers
    lengths: torch.Tensor  # int64 [s]: how many of the n are of each sequence, one after the other, on every rank alike
    samples: torch.Tensor  # int64 [s]: the number of each sequence's sample in the whole batch
    totals: torch.Tensor  # int64 [s]: how many trained tokens each sequence has on all ranks together
    places: torch.Tensor  # int64 [n]: which of its sequence's trained tokens each is
    imitate: torch.Tensor | None = None  # float32 [h]: weights of tokens that are imitated besides; None: never any
    spread: dist.ProcessGroup | None = None  # the context-parallel ranks that hold parts of the sequences

    def sequence_sum(self, values: torch.Tensor) -> torch.Tensor:
        """For every trained token the sum over its whole sequence; values [n], on the last pipeline stage.

        Collective over context-parallel ranks.
        """
        if not len(self.lengths):
            return values
        sums = torch.segment_reduce(values, "sum", lengths=self.lengths)
        if self.spread is not None:
            dist.all_reduce(sums, group=self.spread)
        return sums.repeat_interleave(self.lengths, output_size=len(values))

    def whole(self, values: torch.Tensor) -> torch.Tensor:
        """As ``TokenBatch.whole``; on the last pipeline stage, collective over context-parallel ranks.

        The gradient is that of this rank's own tokens, which is right for a loss that all ranks compute alike.
        """
        longest = int(self.totals.max()) if len(self.totals) else 0
        own = self._sequences, self.places
        side_by_side = values.new_zeros(len(self.totals), longest)
        side_by_side[own] = values.detach()
        if self.spread is not None:
            dist.all_reduce(side_by_side, group=self.spread)
        return side_by_side.index_put(own, values) if values.requires_grad else side_by_side

    def own(self, whole: torch.Tensor) -> torch.Tensor:
        """As ``TokenBatch.own``."""
        return whole[self._sequences, self.places]

    @property
    def _sequences(self) -> torch.Tensor:
        """Which sequence each of the n tokens is of."""
        numbers = torch.arange(len(self.lengths), device=self.lengths.device)
        return numbers.repeat_interleave(self.lengths, output_size=len(self.places))

    @property
    def share(self) -> float:
        """What each rank counts of a number that all context-parallel ranks have alike and that are added up."""
        return 1.0 if self.spread is None else 1.0 / self.spread.size()

    def to(self, device: torch.device) -> "MicroBatch":
        """The same on another device."""
        for name in ("inputs", "targets", "positions", "trained", "lengths", "samples", "totals", "places"):
            setattr(self, name, getattr(self, name).to(device))
        self.columns = {k: v.to(device) for k, v in self.columns.items()}
        self.imitate = None if self.imitate is None else self.imitate.to(device)
        for name in ("cu_seqlens_q", "cu_seqlens_kv", "keys"):
            value = getattr(self.packed, name)
            setattr(self.packed, name, None if value is None else value.to(device))
        for block in self.packed.blocks:
            for name in ("queries", "keys", "mask", "valid"):
                value = getattr(block, name)
                if isinstance(value, torch.Tensor):
                    setattr(block, name, value.to(device))
        return self


@dataclass
class _Row:
    """Positions that lie side by side: a sequence, a completion that continues a shared prompt, or a prompt."""

    tokens: np.ndarray  # int64, inputs
    first: int = 0  # position of its first token
    sequence: TrainingRow | None = None  # whose tokens its positions predict; None: a prompt, or padding
    prompt: int = -1  # the row that it continues; -1: none
    experts: np.ndarray | None = None  # of its tokens

    def __len__(self) -> int:
        return len(self.tokens)


def build(
    sequences: Seq[TrainingRow],
    *,
    columns: Seq[str],
    cp_rank: int = 0,
    cp_size: int = 1,
    multiple: int = 1,
    at_least: int = 0,
    share_prompts: bool = False,
    round_up: Callable[[int], int] = int,
) -> MicroBatch:
    """Pack sequences for one rank.

    ``columns`` are carried along, ``weight`` among them; ``IMITATE`` says which tokens are imitated besides.
    ``multiple`` divides the number of positions per context-parallel rank, which ``round_up`` makes of those that are
    needed; there are ``at_least`` that many. An empty list gives one padding sequence of weight 0: a rank without work
    still takes part in the collectives.
    ``share_prompts``: a prompt that several sequences start with is computed once, and their completions attend to it
    (without context parallelism).
    """
    prompts, rows = _rows(sequences, share_prompts)
    unit = 2 * cp_size if cp_size > 1 else 1
    granule = math.lcm(unit, multiple * cp_size)
    padded = [-(-max(len(row), int(row.prompt < 0)) // unit) * unit for row in rows]
    wanted = max(round_up(-(-sum(padded) // cp_size)), at_least, 1) * cp_size
    apart = len(rows)  # the row of padding, if there is one
    if rest := -(-wanted // granule) * granule - sum(padded):
        rows.append(_Row(np.zeros(0, dtype=np.int64)))
        padded.append(rest)
    starts = np.concatenate([[0], np.cumsum(padded)])
    inputs, positions, trained, targets, experts = [], [], [], [], []
    imitated: list[np.ndarray] = []
    to_imitate: list[np.ndarray] = []
    imitate: list[np.ndarray] = []
    samples: list[int] = []
    totals: list[int] = []
    places: list[np.ndarray] = []
    choices = max((s.experts.shape[1] for s in sequences if s.experts is not None), default=0)  # of a token
    kept: dict[str, list[np.ndarray]] = {name: [] for name in columns if name != IMITATE}
    for row, length, start in zip(rows, padded, starts[:-1] // cp_size, strict=True):
        own = _zigzag(length, cp_rank, cp_size)
        inputs.append(_padded(row.tokens, length)[own])
        positions.append(row.first + own)
        routing = np.full((length, choices), -1, dtype=np.int16)
        if row.experts is not None:
            routing[: len(row)] = row.experts
        experts.append(routing[own])
        if row.sequence is None:
            continue
        tokens, weights = row.sequence.tokens, row.sequence.columns["weight"]
        predicted, at = row.first + own + 1, start + np.arange(len(own))
        if row.prompt >= 0:  # the first token is predicted by the prompt's last position
            predicted = np.concatenate([[row.first], predicted])
            at = np.concatenate([[starts[row.prompt + 1] - 1], at])
        inside = predicted < len(tokens)
        weighty = inside & (weights[np.minimum(predicted, len(tokens) - 1)] != 0)
        trained.append(at[weighty])
        targets.append(tokens[predicted[weighty]])
        samples.append(row.sequence.sample)
        before = np.cumsum(weights[1:] != 0)  # trained tokens up to each prediction, this one included
        totals.append(int(before[-1]) if len(before) else 0)
        places.append(before[predicted[weighty] - 1] - 1)
        for name in kept:
            kept[name].append(row.sequence.columns[name][predicted[weighty]])
        if IMITATE in columns:
            wanted_of = row.sequence.columns[IMITATE][np.minimum(predicted, len(tokens) - 1)]
            chosen = inside & (wanted_of != 0)
            imitated.append(at[chosen])
            to_imitate.append(tokens[predicted[chosen]])
            imitate.append(wanted_of[chosen])
    seen = _seen(rows, padded, starts) if prompts else []
    filled = (
        [length for length in padded if length] if prompts else padded
    )  # a completion of one token has no positions
    reach = [len(keys) for keys in seen] if prompts else padded
    packed = PackedSequences(
        qkv_format="thd",
        cu_seqlens_q=_cumulated(filled),
        cu_seqlens_kv=_cumulated(reach),
        max_seqlen_q=max(padded),
        max_seqlen_kv=max(reach),
        keys=torch.from_numpy(np.concatenate(seen)) if prompts else None,
        blocks=_shared_blocks(rows, padded, starts, prompts, apart)
        if prompts
        else _blocks(padded, cp_rank, cp_size, apart),
        experts=torch.from_numpy(np.concatenate(experts)) if choices else None,
    )
    return MicroBatch(
        inputs=_tensor(inputs, np.int64).view(1, -1),
        targets=_tensor([*targets, *to_imitate], np.int64),
        positions=_tensor(positions, np.int64).view(1, -1),
        packed=packed,
        trained=_tensor([*trained, *imitated], np.int64),
        columns={name: _tensor(parts, np.float32) for name, parts in kept.items()},
        lengths=torch.tensor([len(part) for part in targets], dtype=torch.int64),
        samples=torch.tensor(samples, dtype=torch.int64),
        totals=torch.tensor(totals, dtype=torch.int64),
        places=_tensor(places, np.int64),
        imitate=_tensor(imitate, np.float32) if IMITATE in columns else None,
    )


def _rows(sequences: Seq[TrainingRow], share_prompts: bool) -> tuple[int, list[_Row]]:
    """The number of shared prompts, and all rows: prompts, then sequences, each with the longest first.

    Equal lengths then lie side by side, which attention needs no copies for.
    """
    by_prompt: dict[bytes, list[TrainingRow]] = {}
    for s in sequences if share_prompts else ():
        by_prompt.setdefault(s.shared(), []).append(s)
    shared = sorted((g for key, g in by_prompt.items() if key and len(g) > 1), key=lambda g: -g[0].prompt)
    rows = [
        _Row(g[0].tokens[: g[0].prompt], experts=None if g[0].experts is None else g[0].experts[: g[0].prompt])
        for g in shared
    ]
    prompt_of = {id(s): i for i, group in enumerate(shared) for s in group}
    for s in sorted(sequences, key=len, reverse=True):
        prompt = prompt_of.get(id(s), -1)
        first = 0 if prompt < 0 else s.prompt
        rows.append(_Row(s.tokens[first:-1], first, s, prompt, None if s.experts is None else s.experts[first:]))
    return len(shared), rows


def _seen(rows: list[_Row], lengths: list[int], starts: np.ndarray) -> list[np.ndarray]:
    """Where the keys lie that each row with positions sees: its prompt's, if it continues one, and its own."""
    found = []
    for row, length, start in zip(rows, lengths, starts[:-1], strict=True):
        before = starts[row.prompt] + np.arange(row.first) if row.prompt >= 0 else np.zeros(0, dtype=np.int64)
        if length:
            found.append(np.concatenate([before, start + np.arange(length)]))
    return found


def _cumulated(lengths: list[int]) -> torch.Tensor:
    """Megatron's cu_seqlens: int32 [s + 1]."""
    return torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))


def _tensor(parts: list[np.ndarray], dtype: type) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([*parts, np.zeros(0, dtype=dtype)]).astype(dtype, copy=False))


def _padded(values: np.ndarray, length: int) -> np.ndarray:
    return np.concatenate([values, np.zeros(length - len(values), dtype=values.dtype)])


def _zigzag(length: int, rank: int, size: int) -> np.ndarray:
    """Positions of one sequence that a context-parallel rank holds: chunks rank and 2 size - 1 - rank of 2 size."""
    if size == 1:
        return np.arange(length)
    chunk = length // (2 * size)
    first, last = rank * chunk, (2 * size - 1 - rank) * chunk
    return np.concatenate([np.arange(first, first + chunk), np.arange(last, last + chunk)])


def _blocks(lengths: list[int], rank: int, size: int, apart: int) -> list[AttentionBlock]:
    """Batch neighbours whose lengths differ by less than a quarter (lengths come sorted, longest first).

    Row ``apart`` is padding, and a block for itself: beside it, rows of equal length would no longer be alike.
    """
    starts = np.concatenate([[0], np.cumsum(lengths)])
    blocks, i = [], 0
    while i < len(lengths):
        j = i
        while j < len(lengths) and j != max(apart, i + 1) and 0.75 * lengths[i] <= lengths[j] <= lengths[i]:
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


def _shared_blocks(
    rows: list[_Row], lengths: list[int], starts: np.ndarray, prompts: int, apart: int
) -> list[AttentionBlock]:
    """Prompts attend to themselves, every other row to its prompt, if it has one, and to itself."""
    blocks = _blocks(lengths[:prompts], 0, 1, prompts)
    reach = [row.first + length for row, length in zip(rows, lengths, strict=True)]  # keys that the last query sees
    i = prompts
    while i < len(rows):
        j = i
        while j < len(rows) and j != max(apart, i + 1) and 0.75 * reach[i] <= reach[j] <= reach[i]:
            j += 1
        first = np.array([row.first for row in rows[i:j]])[:, None]
        size, start = np.array(lengths[i:j])[:, None], starts[i:j, None]
        before = np.array([starts[max(row.prompt, 0)] for row in rows[i:j]])[:, None]
        query, key = np.arange(size.max())[None], np.arange(reach[i])[None]
        queries = start + np.minimum(query, np.maximum(size - 1, 0))
        own = start + np.clip(key - first, 0, np.maximum(size - 1, 0))
        keys = np.where(key < first, before + np.minimum(key, np.maximum(first - 1, 0)), own)
        alike = len(np.unique(first)) == 1  # one mask for all rows
        mask = key[None] <= ((first[:1] if alike else first) + query)[:, :, None]
        valid = (query < size).reshape(-1).nonzero()[0]
        last = starts[-1] - 1  # a completion of one token has no positions, and may begin where all end
        blocks.append(
            AttentionBlock(
                j - i,
                torch.from_numpy(np.minimum(queries, last)),
                torch.from_numpy(np.minimum(keys, last)),
                torch.from_numpy(mask)[:, None],
                torch.from_numpy(valid),
            )
        )
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
