"""Attention and positions of shared prompts in Transformer Engine's layers, with a stand-in for its attention."""

import math
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron_rl.actor.micro_batch import PackedSequences, build
from megatron_rl.actor.modules.layers import PackedAttention, PackedRotary, apply_rotary
from megatron_rl.actor.modules.shared_prompts import SharedRotary, _example, attend, tried

CONFIG = SimpleNamespace(num_attention_heads=8, num_query_groups=4, kv_channels=16)
GROUPS = SimpleNamespace(tp=SimpleNamespace(size=lambda: 2), cp=SimpleNamespace(size=lambda: 1))


def by_sequence(mask_type: str = "padding_causal_bottom_right") -> Callable[..., torch.Tensor]:
    """What Transformer Engine documents of its attention over packed sequences, one sequence after the other."""

    def attention(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: None, **given: Any
    ) -> torch.Tensor:
        assert given["qkv_format"] == "thd" and given["attn_mask_type"] == "padding_causal_bottom_right"
        starts_q, starts_kv = given["cu_seqlens_q"].tolist(), given["cu_seqlens_kv"].tolist()
        assert starts_q[-1] == len(query) and starts_kv[-1] == len(key) == len(value)
        assert max(b - a for a, b in pairwise(starts_q)) == given["max_seqlen_q"]
        assert max(b - a for a, b in pairwise(starts_kv)) == given["max_seqlen_kv"]
        repeat, outputs = query.shape[1] // key.shape[1], []
        for i in range(len(starts_q) - 1):
            q = query[starts_q[i] : starts_q[i + 1]].float()
            k, v = (x[starts_kv[i] : starts_kv[i + 1]].float().repeat_interleave(repeat, dim=1) for x in (key, value))
            assert 0 < len(q) <= len(k)
            behind = len(k) - len(q) if mask_type.endswith("bottom_right") else 0
            hidden = torch.ones(len(q), len(k), dtype=torch.bool).triu(behind + 1)
            scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1])
            weights = scores.masked_fill(hidden, -math.inf).softmax(-1)
            outputs.append(torch.einsum("hqk,khd->qhd", weights, v).flatten(1))
        return torch.cat(outputs).to(query.dtype)

    return attention


def shared(multiple: int = 1) -> Any:
    return build(_example(), columns=["weight"], multiple=multiple, share_prompts=True)


@pytest.mark.parametrize("multiple", [1, 16])
def test_completions_see_their_prompt_and_themselves(multiple: int) -> None:
    packed = shared(multiple).packed
    torch.manual_seed(0)
    parts = [torch.randn(int(packed.cu_seqlens_q[-1]), n, 16, requires_grad=True) for n in (4, 2, 2)]
    others = [part.detach().clone().requires_grad_() for part in parts]
    out = attend(by_sequence(), *parts, packed)
    reference = PackedAttention(CONFIG, 1, None, "self", pg_collection=GROUPS)(*others, None, packed_seq_params=packed)
    assert (out - reference).abs().max() < 1e-5
    out.square().sum().backward()
    reference.square().sum().backward()
    for mine, theirs in zip(parts, others, strict=True):
        assert mine.grad is not None and theirs.grad is not None
        assert (mine.grad - theirs.grad).abs().max() < 1e-4


def test_without_shared_prompts_nothing_is_repeated() -> None:
    packed = build(_example(), columns=["weight"], share_prompts=False).packed
    assert packed.keys is None and torch.equal(packed.cu_seqlens_q, packed.cu_seqlens_kv)
    lengths = packed.cu_seqlens_q.diff().tolist()
    assert sorted(lengths) == [24, 28, 30, 40, 48, 69]
    packed = shared().packed
    assert packed.keys is not None
    # two prompts, then what continues one or stands alone, each without its last token; that of one token is nowhere
    assert packed.cu_seqlens_q.diff().tolist() == [40, 24, 29, 8, 16, 30, 4]
    assert packed.cu_seqlens_kv.diff().tolist() == [40, 24, 69, 48, 40, 30, 28]


def test_what_an_attention_is_tried_for() -> None:
    def module(attention: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def forward(*parts: Any, attn_mask_type: Any, packed_seq_params: PackedSequences) -> torch.Tensor:
            return attend(attention, *parts[:3], packed_seq_params)

        return forward

    def refusing(*arguments: Any, **given: Any) -> torch.Tensor:
        raise ValueError("No dot product attention backend is available for the provided inputs.")

    assert tried(module(by_sequence()), CONFIG, GROUPS) == ""
    assert "is wrong with them, by" in tried(module(by_sequence("padding_causal")), CONFIG, GROUPS)
    assert "does not take them (No dot product attention backend" in tried(module(refusing), CONFIG, GROUPS)
    nan = module(lambda query, *arguments, **given: query.flatten(1) * math.nan)
    assert "of the largest of outputs" in tried(nan, CONFIG, GROUPS)


def test_positions_are_those_of_the_whole_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turned by its place behind the prompt where prompts are shared; by Megatron's own embedding elsewhere."""
    frequencies = 1e4 ** (-torch.arange(0, 16, 2) / 16)

    class Whole(torch.nn.Module):
        def get_rotary_seq_len(self, *arguments: Any) -> int:
            return 7

        def forward(self, length: int, **given: Any) -> torch.Tensor:
            return torch.zeros(length, 1, 1, 16)

    rotary = SharedRotary(Whole(), PackedRotary(frequencies, torch.float32))
    whole, batch = build(_example(), columns=["weight"]), shared()
    rotary.prepare(whole.positions, whole.packed)
    assert rotary.get_rotary_seq_len(None) == 7 and rotary(7).shape == (7, 1, 1, 16)
    seen: list[Any] = []
    monkeypatch.setattr(
        "megatron_rl.actor.modules.layers.apply_rotary_pos_emb", lambda *given, **more: seen.append(more)
    )
    apply_rotary(torch.ones(7, 2, 16), rotary(7), config="c", cu_seqlens="s")
    assert seen == [{"config": "c", "cu_seqlens": "s"}]

    rotary.prepare(batch.positions, batch.packed)
    table = rotary(7)
    turned = apply_rotary(torch.ones(batch.inputs.shape[1], 2, 16), table, config="c", cu_seqlens="s")
    angles = batch.positions[0, :, None].float() * frequencies
    assert torch.allclose(turned[:, 0, :8], angles.cos() - angles.sin(), atol=1e-6)
    assert torch.allclose(turned[:, 1, 8:], angles.cos() + angles.sin(), atol=1e-6)
    assert len(seen) == 1
