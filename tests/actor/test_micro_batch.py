"""Packing into tensors: what each rank holds, and how attention blocks map it."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_rl.actor.micro_batch import build
from megatron_rl.actor.packing import spared
from megatron_rl.actor.rows import IMITATE, TrainingRow


def sequence(length: int, first: int) -> TrainingRow:
    tokens = np.arange(first, first + length)
    return TrainingRow(tokens, {"weight": (np.arange(length) >= 2).astype(np.float32), "x": tokens.astype(np.float32)})


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 20), max_size=7),
    cp=st.sampled_from([1, 2, 3]),
    multiple=st.sampled_from([1, 2, 3, 4]),
)
def test_every_trained_token_is_on_one_rank(lengths: list[int], cp: int, multiple: int) -> None:
    sequences = [sequence(n, 1 + 100 * i) for i, n in enumerate(lengths)]
    parts = [build(sequences, columns=["weight", "x"], cp_rank=r, cp_size=cp, multiple=multiple) for r in range(cp)]
    assert len({p.inputs.shape for p in parts}) == 1
    assert parts[0].inputs.shape[1] % multiple == 0 and parts[0].inputs.shape[1] > 0
    seen = torch.cat([p.columns["x"] for p in parts]).tolist()
    trained = [sum(own) for own in zip(*(p.lengths.tolist() for p in parts), strict=True)]
    assert trained == sorted((max(n - 2, 0) for n in lengths), reverse=True)  # rank by rank, longest first
    assert sorted(seen) == sorted(float(t) for s in sequences for t in s.tokens[2:])
    for part in parts:
        targets = part.targets
        assert targets.tolist() == part.columns["x"].tolist()
        assert part.inputs[0][part.trained].tolist() == (targets - 1).tolist()  # the token before
        assert part.positions[0][part.trained].tolist() == ((targets - 1) % 100 - 1).tolist()
        assert part.packed.cu_seqlens_q[-1] == part.inputs.shape[1] * cp


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(2, 24), min_size=1, max_size=6), cp=st.sampled_from([1, 2]))
def test_blocks_are_causal_attention_inside_each_sequence(lengths: list[int], cp: int) -> None:
    """Attend with one-hot values: the output says which positions every query saw."""
    sequences = [sequence(n, 1 + 100 * i) for i, n in enumerate(lengths)]
    parts = [build(sequences, columns=["weight"], cp_rank=r, cp_size=cp) for r in range(cp)]
    tokens = torch.cat([p.inputs[0] for p in parts]).float()  # keys as context parallelism gathers them: rank by rank
    for part in parts:
        rows = []
        for block in part.packed.blocks:
            keys = block.rows(tokens.view(-1, 1, 1), block.keys)  # [count, 1, longest, 1]
            queries = block.rows(part.inputs[0].float().view(-1, 1, 1), block.queries)
            length = keys.shape[2]
            mask = block.mask if block.mask is not None else torch.ones(length, length, dtype=torch.bool).tril()
            allowed = mask.expand(queries.shape[0], 1, queries.shape[2], length)
            seen = (keys.transpose(2, 3) * allowed).sum(-1, keepdim=True)
            rows.append(block.flat(seen))
        got = torch.cat(rows).view(-1)
        for position, token, value in zip(part.positions[0], part.inputs[0], got, strict=True):
            if token > 0:  # not padding
                assert value == sum(range(int(token - position), int(token) + 1))


@settings(max_examples=100, deadline=None)
@given(data=st.data(), multiple=st.sampled_from([1, 4]))
def test_a_shared_prompt_is_there_once_and_seen_by_all(data: st.DataObject, multiple: int) -> None:
    """Attend with the tokens as values: every prediction has seen exactly what comes before it in its sequence."""
    sequences, positions, fresh, repeated = [], 0, 1, 0
    for prompt in data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=4), label="prompts"):
        completions = data.draw(st.lists(st.integers(1, 20), min_size=1, max_size=4), label="completions")
        head = np.arange(fresh, fresh + prompt)
        for length in completions:
            tokens = np.concatenate([head, np.arange(fresh + 100, fresh + 100 + length)])
            fresh += 200
            seen = np.cumsum(tokens) - tokens
            weight = (np.arange(len(tokens)) >= max(prompt, 1)).astype(np.float32)
            columns = {"weight": weight, "seen": seen.astype(np.float32)}
            sequences.append(TrainingRow(tokens, columns, prompt=prompt))
        repeated += prompt * (len(completions) - 1)
        alone = prompt == 0 or len(completions) == 1
        positions += (
            sum(max(prompt + n - 1, 1) for n in completions) if alone else prompt + sum(completions) - len(completions)
        )
    batch = build(sequences, columns=["weight", "seen"], multiple=multiple, share_prompts=True)
    assert batch.inputs.shape[1] == -(-positions // multiple) * multiple
    assert sum(spared([[sequences], [sequences]])) == 2 * repeated
    tokens = batch.inputs[0].float().view(-1, 1, 1)
    rows = []
    for block in batch.packed.blocks:
        keys, queries = block.rows(tokens, block.keys), block.rows(tokens, block.queries)
        length = keys.shape[2]
        mask = block.mask if block.mask is not None else torch.ones(length, length, dtype=torch.bool).tril()
        allowed = mask.expand(queries.shape[0], 1, queries.shape[2], length)
        rows.append(block.flat((keys.transpose(2, 3) * allowed).sum(-1, keepdim=True)))
    got = torch.cat(rows).view(-1)
    assert len(got) == batch.inputs.shape[1]
    assert got[batch.trained].tolist() == batch.columns["seen"].tolist()
    assert sorted(batch.targets.tolist()) == sorted(t for s in sequences for t in s.tokens[max(s.prompt, 1) :])


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(4, 20), max_size=6), cp=st.sampled_from([1, 2]), shared=st.booleans())
def test_imitated_tokens_stand_behind_the_trained_ones(lengths: list[int], cp: int, shared: bool) -> None:
    """Two tokens of prompt, two that are told, the rest drawn; without their column no told token has a position."""
    rows = []
    for i, length in enumerate(lengths):
        place = np.arange(length)
        tokens = np.concatenate([[1, 2], np.arange(2, length) + 100 * (i + 1)])
        told = np.where((place >= 2) & (place < 4), tokens, 0).astype(np.float32)
        columns = {"weight": (place >= 4).astype(np.float32), "x": tokens.astype(np.float32), IMITATE: told}
        rows.append(TrainingRow(tokens, columns, prompt=2))
    both, alone = (
        [build(rows, columns=names, cp_rank=r, cp_size=cp, share_prompts=shared and cp == 1) for r in range(cp)]
        for names in (["weight", "x", IMITATE], ["weight", "x"])
    )
    for part, plain in zip(both, alone, strict=True):
        n = len(plain.targets)
        assert plain.imitate is None and part.imitate is not None and len(part.targets) == n + len(part.imitate)
        assert (part.targets[:n] == plain.targets).all() and (part.trained[:n] == plain.trained).all()
        assert (part.columns["x"] == plain.columns["x"]).all() and (part.totals == plain.totals).all()
        assert part.targets[n:].tolist() == part.imitate.tolist() and IMITATE not in part.columns
        before = part.inputs[0][part.trained[n:]]
        assert all(b == t - 1 or b == 2 for b, t in zip(before.tolist(), part.targets[n:].tolist(), strict=True))
    told = sorted(t for part in both for t in part.targets[len(part.columns["x"]) :].tolist())
    assert told == sorted(int(t) for row in rows for t in row.tokens[2:4])


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(2, 24), max_size=6), cp=st.sampled_from([1, 2]), shared=st.booleans())
def test_padding_changes_no_other_block(lengths: list[int], cp: int, shared: bool) -> None:
    """However many positions are added, the sequences' blocks are those without any."""
    sequences = [sequence(n, 1 + 100 * i) for i, n in enumerate(lengths)]
    if shared:
        for row in sequences:
            row.prompt, row.tokens = 2, np.concatenate([[1, 2], row.tokens[2:]])
    options = dict(columns=["weight"], cp_size=cp, share_prompts=shared and cp == 1)
    plain, padded = build(sequences, **options), build(sequences, round_up=lambda n: n + 8, **options)
    assert padded.inputs.shape[1] == max(plain.inputs.shape[1], 1 if lengths else 0) + 8 or not lengths
    assert padded.trained.tolist() == plain.trained.tolist() and padded.targets.tolist() == plain.targets.tolist()
    if cp == 1:
        for one, other in zip(plain.packed.blocks, padded.packed.blocks, strict=False):
            if lengths:
                assert (one.count, one.mask is None) == (other.count, other.mask is None)
                assert (
                    one.rows(plain.inputs[0].view(-1, 1, 1), one.queries).tolist()
                    == other.rows(padded.inputs[0].view(-1, 1, 1), other.queries).tolist()
                )
    assert len(padded.packed.blocks) == len(plain.packed.blocks) + bool(lengths)
