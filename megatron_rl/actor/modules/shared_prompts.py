"""Prompts that several completions share, in Transformer Engine's layers.

Its attention over packed sequences takes queries and keys of different lengths, a causal mask aligned at their ends
(``padding_causal_bottom_right``): a completion's queries meet the keys of its prompt, which are repeated for them, and
its own. Its rotary embedding counts the positions of every sequence from 0, so a micro-batch with shared prompts has
its own turned by their positions. Whether a GPU's kernels do all that is tried before it is relied on.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch

from megatron_rl.actor import accelerator, groups
from megatron_rl.actor.config import ActorConfig
from megatron_rl.actor.micro_batch import PackedSequences, build
from megatron_rl.actor.modules.layers import PackedAttention, PackedRotary
from megatron_rl.actor.rows import TrainingRow

_CLOSE = 0.05  # of the largest number, in bfloat16; a wrong mask is off by all of it


class SharedRotary(torch.nn.Module):
    """Megatron's rotary embedding, which counts positions itself, or ``PackedRotary`` where prompts are shared."""

    def __init__(self, whole: torch.nn.Module, packed: PackedRotary) -> None:
        super().__init__()
        self.whole, self.packed = whole, packed
        self._shared = False

    def prepare(self, positions: torch.Tensor, packed: PackedSequences) -> None:
        """Before every forward pass; positions int64 [1, t]."""
        self.packed.prepare(positions, packed)
        self._shared = packed.keys is not None

    def get_rotary_seq_len(self, *args: Any) -> int:
        """Part of Megatron's interface."""
        return self.whole.get_rotary_seq_len(*args)  # type: ignore[operator, no-any-return]

    def forward(self, length: int, **kwargs: Any) -> torch.Tensor:
        """As the one that it is for this micro-batch."""
        return (self.packed if self._shared else self.whole)(length, **kwargs)  # type: ignore[no-any-return]


@cache
def shared_attention() -> type[torch.nn.Module]:
    """Megatron's attention by Transformer Engine, which also takes micro-batches with shared prompts."""
    from megatron.core.extensions.transformer_engine import TEDotProductAttention

    class SharedAttention(TEDotProductAttention):  # type: ignore[misc]
        def forward(
            self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any
        ) -> torch.Tensor:
            packed = kwargs.get("packed_seq_params")
            if packed is None or packed.keys is None:
                return super().forward(query, key, value, *args, **kwargs)  # type: ignore[no-any-return]
            return attend(super(TEDotProductAttention, self).forward, query, key, value, packed)

    return SharedAttention


def attend(
    attention: Callable[..., torch.Tensor],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    packed: PackedSequences,
) -> torch.Tensor:
    """query [t, heads, d], key and value [t, groups, d] -> [t, heads * d], by Transformer Engine's ``attention``."""
    assert packed.keys is not None
    return attention(
        query,
        key.index_select(0, packed.keys),
        value.index_select(0, packed.keys),
        None,
        qkv_format="thd",
        cu_seqlens_q=packed.cu_seqlens_q,
        cu_seqlens_kv=packed.cu_seqlens_kv,
        max_seqlen_q=packed.max_seqlen_q,
        max_seqlen_kv=packed.max_seqlen_kv,
        attn_mask_type="padding_causal_bottom_right",
    )


def shares_prompts(chunks: list[Any], config: ActorConfig, fused: bool) -> bool:
    """Whether completions of one prompt share it in a model; ``fused``: of Transformer Engine's layers. Collective.

    Where its attention cannot, which a line says, every completion computes its prompt itself.
    """
    if not config.packing or config.context_parallel > 1 or config.virtual_pipeline > 1:
        return False
    if not fused or config.attention == "torch":
        return True
    model = chunks[0]
    trouble = tried(model.decoder.layers[0].self_attention.core_attention, model.config, model.pg_collection)
    trouble = groups.share(next(filter(None, groups.gather(trouble)), ""))
    if trouble and groups.first():
        print(f"Prompts are computed once for each completion: Transformer Engine's attention {trouble}.", flush=True)
    return not trouble


def tried(attention: Callable[..., torch.Tensor], config: Any, pg_collection: Any) -> str:
    """What is wrong with an attention where prompts are shared, held against torch's; empty: nothing.

    Outputs and gradients of random bfloat16 numbers: two shared prompts, a sequence alone, and padding.
    """
    packed = build(_example(), columns=["weight"], multiple=16, share_prompts=True).to(accelerator.device()).packed
    assert packed.keys is not None
    ranks = pg_collection.tp.size()
    heads, shared = config.num_attention_heads // ranks, max(1, config.num_query_groups // ranks)
    shape = int(packed.cu_seqlens_q[-1]), heads + 2 * shared, config.kv_channels
    drawn = np.random.default_rng(0).standard_normal(shape)
    numbers = torch.from_numpy(drawn).to(accelerator.device(), torch.bfloat16)
    theirs = PackedAttention(config, 1, None, "self", pg_collection=pg_collection)
    found = []
    for one in (attention, theirs):
        parts = [part.clone().requires_grad_() for part in numbers.split([heads, shared, shared], 1)]
        try:
            out = one(*parts, None, attn_mask_type=None, packed_seq_params=packed)
            out.backward(torch.linspace(-1, 1, out.numel(), device=out.device).to(out.dtype).view_as(out))
        except (RuntimeError, ValueError, AssertionError) as error:
            return f"does not take them ({' '.join(str(error).split())[:200]})"
        found.append([out.detach(), *(part.grad for part in parts)])
    for name, mine, reference in zip(("outputs", "queries", "keys", "values"), *found, strict=True):
        gap = float((mine.float() - reference.float()).abs().max() / reference.float().abs().max())
        if not gap < _CLOSE:
            return f"is wrong with them, by {gap:.2f} of the largest of {name}"
    return ""


def _example() -> list[TrainingRow]:
    def row(prompt: int, first: int, length: int) -> TrainingRow:
        tokens = np.concatenate([np.full(prompt, first), np.arange(length)]).astype(np.int64)
        weight = (np.arange(prompt + length) >= prompt).astype(np.float32)
        return TrainingRow(tokens, {"weight": weight}, prompt)

    return [row(40, 1, 9), row(40, 1, 30), row(24, 2, 17), row(24, 2, 1), row(24, 2, 5), row(11, 3, 20)]
