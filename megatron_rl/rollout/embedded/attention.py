"""What the HF layers need to decode: a cache of keys and values in which a prompt lies once, and attention over it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

ATTENTION = "megatron_rl_decoding"  # under this name transformers' layers find ``attend``


class StaticCache:
    """Keys and values of the running sequences, allocated once: of every prompt, and of every row's own tokens.

    A row is one completion; rows of one prompt read the prompt's keys together, in one product. Prompts end at the last
    column of theirs, own tokens of all rows at column ``length``, so that a decoding step writes one column and reads a
    view; what stands before a prompt or a row's first token is finite and must be masked. A decoding step sees
    ``width`` columns of prompts and then ``length`` own ones.
    Keys are kept transposed, [..., head_dim, columns], because queries of one token multiply that faster; values are
    [..., columns, head_dim].
    """

    def __init__(self, layers: int, prompts: int, longest: int, rows: int, columns: int) -> None:
        self.sizes = (prompts, longest), (rows, columns)
        self.prompts = self.rows = 0  # that are there
        self.width = 0  # columns of the longest prompt that is there
        self.length = 0  # own columns
        self.layers: list[tuple[_Store, _Store] | None] = [None] * layers
        self.filling_prompts = False
        self.most = 1  # rows of one prompt
        self.slots: torch.Tensor | None = None  # int64 [prompts * most]: rows, prompt by prompt; None: they lie so
        self.places: torch.Tensor | None = None  # int64 [rows]: where among the slots each row is

    def update(self, key: torch.Tensor, value: torch.Tensor, layer: int, *_: Any) -> tuple[Any, Any]:
        """Called by every attention layer with [batch, heads, tokens, head_dim]; returns what to attend to.

        Those are the prompts' own keys and values, or in a decoding step what ``attend`` reads the cache by.
        """
        if not self.filling_prompts:
            self.append(layer, key[:, :, 0], value[:, :, 0])
            return (self, layer), None
        prompts, own = self.layers[layer] or tuple(_Store(key, value, *size) for size in self.sizes)
        self.layers[layer] = prompts, own
        rows, first = slice(self.prompts, self.prompts + len(key)), prompts.columns - key.shape[2]
        prompts.keys[rows, :, :, first:] = key.transpose(2, 3)
        prompts.values[rows, :, first:] = value
        return key, value

    def append(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Every row's next token, which is in column ``length - 1``: [rows, heads, head_dim] each."""
        found = self.layers[layer]
        assert found is not None
        _, own = found
        own.keys[: self.rows].select(3, self.length - 1).copy_(key)
        own.values[: self.rows].select(2, self.length - 1).copy_(value)

    @contextmanager
    def filling(self, prompts: int) -> Iterator[None]:
        """Inside, the layers' keys are those of so many new prompts."""
        self.filling_prompts = True
        yield
        self.filling_prompts = False
        self.prompts += prompts

    def keep(self, prompts: torch.Tensor, rows: torch.Tensor, first: int) -> None:
        """Keep these prompts, and these rows (int64) from own column ``first`` on, moved to the front."""
        for layer in self.layers:
            assert layer is not None
            shared, own = layer
            if len(prompts) < self.prompts:
                shared.keys[: len(prompts)] = shared.keys[prompts]
                shared.values[: len(prompts)] = shared.values[prompts]
            own.keys[: len(rows), :, :, : self.length - first] = own.keys[:, :, :, first : self.length][rows]
            own.values[: len(rows), :, : self.length - first] = own.values[:, :, first : self.length][rows]
        self.prompts, self.rows, self.length = len(prompts), len(rows), self.length - first

    def arrange(self, prompt: torch.Tensor, width: int) -> None:
        """Say which prompt (int64 [rows], ascending) every row continues, and how long the longest of them is."""
        self.rows, self.width = len(prompt), width
        counts = prompt.bincount(minlength=self.prompts)
        self.most = int(counts.max())
        self.slots = self.places = None
        if self.most * self.prompts > self.rows:
            before = counts.cumsum(0) - counts
            self.places = prompt * self.most + torch.arange(self.rows, device=prompt.device) - before[prompt]
            self.slots = torch.zeros(self.prompts * self.most, dtype=torch.int64, device=prompt.device)
            self.slots[self.places] = torch.arange(self.rows, device=prompt.device)

    def attend(self, layer: int, query: torch.Tensor, mask: torch.Tensor | None, scaling: float) -> torch.Tensor:
        """A decoding step of one layer: query [rows, heads, head_dim] -> [rows, heads, head_dim].

        ``mask``: additive, [rows, 1, 1, width + length]; None: every column is a token.
        """
        found = self.layers[layer]
        assert found is not None
        prompts, own = found
        rows, heads, head_dim = query.shape
        groups = own.keys.shape[1]
        # the query heads that share a key head are the rows of one product: nothing is repeated
        query = (query * scaling).reshape(rows, groups, heads // groups, head_dim)
        first = prompts.columns - self.width
        by_prompt = torch.matmul(self._together(query), prompts.keys[: self.prompts, :, :, first:])
        by_row = torch.matmul(query, own.keys[:rows, :, :, : self.length])
        scores = torch.cat([self._apart(by_prompt), by_row], -1)
        if mask is not None:
            scores += mask
        wide = torch.promote_types(scores.dtype, torch.float32)
        weights = scores.softmax(-1, dtype=wide).to(own.values.dtype)
        by_prompt = self._together(weights[..., : self.width]) @ prompts.values[: self.prompts, :, first:]
        output = weights[..., self.width :] @ own.values[:rows, :, : self.length]
        output += self._apart(by_prompt)
        return output.view(rows, heads, -1)

    def _together(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, groups, heads of a group, n] -> [prompts, groups, most * heads of a group, n]."""
        if self.slots is not None:
            x = x.index_select(0, self.slots)
        _, groups, heads, n = x.shape
        x = x.view(self.prompts, self.most, groups, heads, n).transpose(1, 2)
        return x.reshape(self.prompts, groups, self.most * heads, n)

    def _apart(self, x: torch.Tensor) -> torch.Tensor:
        """The way back."""
        prompts, groups, heads, n = x.shape
        x = x.view(prompts, groups, self.most, heads // self.most, n).transpose(1, 2)
        x = x.reshape(prompts * self.most, groups, heads // self.most, n)
        return x if self.places is None else x.index_select(0, self.places)


class _Store:
    """Keys and values of so many sequences of so many tokens."""

    def __init__(self, key: torch.Tensor, value: torch.Tensor, sequences: int, columns: int) -> None:
        self.columns = columns
        # zeros: a masked column is still multiplied, and 0 * NaN is NaN
        self.keys = key.new_zeros(sequences, key.shape[1], key.shape[3], columns)
        self.values = value.new_zeros(sequences, value.shape[1], columns, value.shape[3])


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: Any,
    value: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers' layers call it: [batch, heads, tokens, head_dim] -> [batch, tokens, heads, head_dim].

    Key and value are a prompt's (causal, or a boolean mask [batch, 1, tokens, tokens]), or say where the cache is that
    a decoding step reads (with its additive mask).
    """
    cache, layer = key if value is None else (None, -1)
    columns = key.shape[2] if cache is None else cache.width + cache.length
    if sliding_window is not None and columns > sliding_window:
        raise ValueError(f"a sequence of {columns} tokens passes the sliding window of {sliding_window}")
    if cache is not None:
        scaling = scaling or query.shape[3] ** -0.5
        return cache.attend(layer, query[:, :, 0], attention_mask, scaling)[:, None], None
    assert value is not None
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


AttentionInterface.register(ATTENTION, attend)
