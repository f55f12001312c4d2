"""A decoding step of the dense families without transformers' modules, over their own weights.

Tokens of one step are few, so what a step costs beside its products is the number of operations. Here queries, keys and
values are one product, gate and up another, and queries and keys are normed and turned together. The results are the
modules' (transformers' ``modeling_llama``, ``modeling_qwen2``, ``modeling_qwen3``) to rounding.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from megatron_rl.rollout.embedded.attention import StaticCache
from megatron_rl.system.machine import mkl_is_slow

FAMILIES = ("llama", "qwen2", "qwen3")
_LEAST_ROWS, _ROWS = 32, 8  # oneDNN's products pay from so many rows; it compiles a kernel for every number it meets


def knows(model: PreTrainedModel) -> bool:
    """Whether this is a model of the families whose layers compute as transformers has them."""
    return model.config.model_type in FAMILIES and not any("forward" in vars(module) for module in model.modules())


def stack(layers: Sequence[torch.nn.Linear]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The layers' weights [sum of rows, columns] and biases as one, of which the layers' own become views.

    A weight that is written to in place, as a swap does, is therefore written to here.
    """
    weight = _stacked([layer.weight for layer in layers])
    return weight, None if layers[0].bias is None else _stacked([layer.bias for layer in layers])


def stack_weights(model: PreTrainedModel) -> None:
    """Have every layer's weights lie as a step reads them; once, before anything else notes where they lie."""
    if knows(model):
        for layer in model.model.layers:
            _stacks(layer)


class Decoder:
    """The step of one model, whose weights may change in place."""

    @torch.no_grad()
    def __init__(self, model: PreTrainedModel, positions: int) -> None:
        """``positions``: so many there will be."""
        config, body = model.config, model.model
        self.embedding, self.norm, self.head = body.embed_tokens.weight, body.norm, model.lm_head
        self.layers = [_Layer(layer, config) for layer in body.layers]
        every = torch.arange(positions, device=self.embedding.device)[None]
        cos, sin = body.rotary_emb(self.embedding, every)  # [1, positions, head_dim]
        self.half = cos.shape[2] // 2
        self.cos, self.sin = cos[0, :, None], sin[0, :, None, : self.half]

    def step(
        self, tokens: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor, cache: StaticCache
    ) -> torch.Tensor:
        """Logits [rows, vocabulary] after ``tokens`` [rows] at ``positions`` [rows] or [1]; mask as for ``cache``."""
        hidden = F.embedding(tokens, self.embedding)
        turn = self.cos[positions], self.sin[positions]
        for number, layer in enumerate(self.layers):
            hidden = layer.step(number, hidden, mask, turn, cache)
        return _linear(_norm(hidden, self.norm.weight, self.norm.variance_epsilon), self.head.weight, self.head.bias)


class _Layer:
    def __init__(self, layer: Any, config: Any) -> None:
        self.module, attention = layer, layer.self_attn
        self.heads, self.groups = config.num_attention_heads, config.num_key_value_heads
        self.head_dim, self.scaling = attention.head_dim, attention.scaling
        (self.qkv, self.qkv_bias), (self.gate_up, self.gate_up_bias) = _stacks(layer)
        self.qk_norm: torch.Tensor | None = None
        if hasattr(attention, "q_norm"):
            of_head = [attention.q_norm.weight] * self.heads + [attention.k_norm.weight] * self.groups
            self.qk_norm = torch.stack(of_head)  # [heads + groups, head_dim]
            self.qk_eps = attention.q_norm.variance_epsilon

    def step(
        self,
        number: int,
        hidden: torch.Tensor,
        mask: torch.Tensor | None,
        turn: tuple[torch.Tensor, torch.Tensor],
        cache: StaticCache,
    ) -> torch.Tensor:
        """[rows, hidden] -> the same."""
        layer, rows = self.module, len(hidden)
        normed = _norm(hidden, layer.input_layernorm.weight, layer.input_layernorm.variance_epsilon)
        qkv = _linear(normed, self.qkv, self.qkv_bias).view(rows, -1, self.head_dim)
        turned = self.heads + self.groups
        qk = qkv[:, :turned]
        if self.qk_norm is not None:
            qk = _norm(qk, self.qk_norm, self.qk_eps)
        qk = _rotate(qk, *turn)
        cache.append(number, qk[:, self.heads :], qkv[:, turned:])
        attended = cache.attend(number, qk[:, : self.heads], mask, self.scaling).view(rows, -1)
        output = layer.self_attn.o_proj
        hidden = hidden + _linear(attended, output.weight, output.bias)
        normed = _norm(hidden, layer.post_attention_layernorm.weight, layer.post_attention_layernorm.variance_epsilon)
        gate, up = _linear(normed, self.gate_up, self.gate_up_bias).chunk(2, -1)
        down = layer.mlp.down_proj
        return hidden.add_(_linear(layer.mlp.act_fn(gate).mul_(up), down.weight, down.bias))


def _stacks(layer: Any) -> tuple[tuple[torch.Tensor, torch.Tensor | None], ...]:
    attention, mlp = layer.self_attn, layer.mlp
    return stack([attention.q_proj, attention.k_proj, attention.v_proj]), stack([mlp.gate_proj, mlp.up_proj])


def _stacked(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    first, rows = parts[0].data, sum(len(part) for part in parts)
    follows = first.data_ptr()
    for part in parts:
        if part.data_ptr() != follows or part.untyped_storage().data_ptr() != first.untyped_storage().data_ptr():
            break
        follows += part.nbytes
    else:
        return first.as_strided((rows, *first.shape[1:]), first.stride(), first.storage_offset())
    whole = torch.cat([part.data for part in parts])
    for part, view in zip(parts, whole.split([len(part) for part in parts]), strict=True):
        part.data = view
    return whole


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    rows = len(x)
    if _ONEDNN and x.dtype == torch.float32 and x.is_cpu and rows >= _LEAST_ROWS and rows % _ROWS == 0:
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return product
    return F.linear(x, weight, bias)


def _norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm over the last dimension; rounded before the weight is applied, as transformers does."""
    wide = x.float()
    scale = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return (wide * scale).to(x.dtype).mul_(weight)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Every head's halves turned: x [rows, heads, d], cos [rows or 1, 1, d], sin the same with d / 2."""
    half = sin.shape[-1]
    turned = x * cos
    turned[..., :half].addcmul_(x[..., half:], sin, value=-1)
    turned[..., half:].addcmul_(x[..., :half], sin)
    return turned


_ONEDNN = torch.backends.mkldnn.is_available() and mkl_is_slow()
