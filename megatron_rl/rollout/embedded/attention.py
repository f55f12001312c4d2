"""What the HF layers need to decode: a static cache of keys and values, and the attention over it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

ATTENTION = "megatron_rl_decoding"  # under this name transformers' layers find ``attend``


class StaticCache:
    """Keys and values of the running sequences, one pair of tensors per layer, allocated once.

    All sequences end at the same column, so that a decoding step writes one column and reads a view: row r
    holds its tokens in columns ``[start[r], length)``; what stands before is finite and must be masked.
    Keys are kept transposed, [rows, heads, head_dim, columns], because queries of one token multiply
    that twice as fast; values are [rows, heads, columns, head_dim].
    """

    def __init__(self, layers: int, rows: int, columns: int) -> None:
        self.rows, self.columns = rows, columns
        self.used = 0  # rows
        self.length = 0  # columns
        self.layers: list[tuple[torch.Tensor, torch.Tensor] | None] = [None] * layers
        self._filling: torch.Tensor | None = None

    def update(self, key: torch.Tensor, value: torch.Tensor, layer: int, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Called by every attention layer with [batch, heads, tokens, head_dim]; returns what to attend to."""
        keys, values = self.layers[layer] or self._allocate(key, value)
        self.layers[layer] = keys, values
        if self._filling is not None:
            first = self.length - key.shape[2]
            rows = slice(self.used, self.used + len(self._filling))
            keys[rows, :, :, first : self.length] = key.transpose(2, 3)[self._filling]
            values[rows, :, first : self.length] = value[self._filling]
            return key, value
        keys, values = keys[: self.used], values[: self.used]
        keys.select(3, self.length - 1).copy_(key[:, :, 0])
        values.select(2, self.length - 1).copy_(value[:, :, 0])
        return keys.narrow(3, 0, self.length).transpose(2, 3), values.narrow(2, 0, self.length)

    @contextmanager
    def filling(self, prompt: torch.Tensor) -> Iterator[None]:
        """Inside, the layers' keys are those of prompts; ``prompt`` (int64) names the prompt of each new row."""
        self._filling = prompt
        yield
        self._filling = None
        self.used += len(prompt)

    def keep(self, rows: torch.Tensor, first: int) -> None:
        """Keep ``rows`` (int64, of the used ones) from column ``first`` on, moved to the front."""
        for layer in self.layers:
            assert layer is not None
            keys, values = layer
            keys[: len(rows), :, :, : self.length - first] = keys[: self.used, :, :, first : self.length][rows]
            values[: len(rows), :, : self.length - first] = values[: self.used, :, first : self.length][rows]
        self.used, self.length = len(rows), self.length - first

    def _allocate(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        heads = key.shape[1]
        # zeros: a masked column is still multiplied, and 0 * NaN is NaN
        keys = key.new_zeros(self.rows, heads, key.shape[3], self.columns)
        return keys, key.new_zeros(self.rows, heads, self.columns, value.shape[3])


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers' layers call it: all arguments [batch, heads, tokens, head_dim].

    Returns [batch, tokens, heads, head_dim] in the query's dtype. Several tokens are a prompt (causal, or a boolean
    mask [batch, 1, tokens, tokens]); one token is a decoding step over all keys (or an additive mask
    [batch, 1, 1, columns]).
    """
    batch, heads, tokens, head_dim = query.shape
    if sliding_window is not None and key.shape[2] > sliding_window:
        raise ValueError(f"a sequence of {key.shape[2]} tokens passes the sliding window of {sliding_window}")
    if tokens > 1:
        output = F.scaled_dot_product_attention(
            query,
            key,
            value.to(query.dtype),
            attention_mask,
            scale=scaling,
            is_causal=attention_mask is None,
            enable_gqa=True,
        )
        return output.transpose(1, 2).contiguous(), None
    groups = key.shape[1]
    # the query heads that share a key head are the rows of one product: nothing is repeated
    query = query.reshape(batch, groups, heads // groups, head_dim)
    scores = torch.matmul(query * (scaling or head_dim**-0.5), key.transpose(2, 3))
    if attention_mask is not None:
        scores += attention_mask
    wide = torch.promote_types(scores.dtype, torch.float32)
    output = torch.matmul(scores.softmax(-1, dtype=wide).to(value.dtype), value)
    return output.reshape(batch, 1, heads, value.shape[3]), None


AttentionInterface.register(ATTENTION, attend)
