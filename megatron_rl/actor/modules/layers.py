"""What replaces Transformer Engine's layers where it is missing: norm, activation, rotary embedding and attention.

``wide`` of a layer: what it computes in; None: as it always does (``megatron_rl.actor.modules.true_on_policy``).
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.common.embeddings.rope_utils import apply_rotary_pos_emb
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region

from megatron_rl.actor import accelerator
from megatron_rl.actor.micro_batch import PackedSequences


class _RMSNorm(torch.autograd.Function):
    """y = x / sqrt(mean(x^2) + eps) * w in fp32 or ``wide``; its backward by hand, in few passes over memory."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float, wide: torch.dtype | None) -> Any:
        wide_x = x.to(wide or torch.float32)
        norm = torch.linalg.vector_norm(wide_x, dim=-1, keepdim=True)
        scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale.float())
        return (wide_x * scale).to(x.dtype).mul_(weight)  # rounded before the weight is applied, as transformers does

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        x, weight, scale = ctx.saved_tensors
        normed, grad, weight32 = x.float() * scale, grads[0].float(), weight.float()
        product = grad * normed
        mean = (product @ weight32).div_(x.shape[-1]).unsqueeze(-1)
        grad_weight = product.flatten(0, -2).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        grad = torch.mul(grad, weight32, out=product)
        return grad.addcmul_(normed, mean, value=-1).mul_(scale).to(x.dtype), grad_weight, None, None


class RMSNorm(torch.nn.Module):
    """RMSNorm in the parameters' dtype that marks its weight for sequence parallelism."""

    wide: torch.dtype | None = None

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5, **kwargs: Any) -> None:
        super().__init__()
        self.eps = eps
        ones = torch.ones(hidden_size, dtype=config.params_dtype, device=accelerator.device())
        self.weight = torch.nn.Parameter(ones)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _RMSNorm.apply(x, self.weight, self.eps, self.wide)  # type: ignore[no-any-return]


class _SwiGLU(torch.autograd.Function):
    """silu(gate) * up of [gate | up], computed again for its gradient; half the passes of Megatron's own on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, wide: torch.dtype | None) -> torch.Tensor:
        ctx.save_for_backward(x)
        gate, up = x.chunk(2, -1)
        return F.silu(gate.to(wide or x.dtype)).to(x.dtype).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        (x,) = ctx.saved_tensors
        gate, up = x.chunk(2, -1)
        grad_x = torch.empty_like(x)
        grad_gate, grad_up = grad_x.chunk(2, -1)
        torch.mul(F.silu(gate), grads[0], out=grad_up)
        torch.ops.aten.silu_backward.grad_input(grads[0] * up, gate, grad_input=grad_gate)
        return grad_x, None


class SwiGLU(torch.nn.Module):
    """The MLP's activation: [..., 2 f] -> [..., f]."""

    wide: torch.dtype | None = None

    def __init__(self, config: Any) -> None:
        super().__init__()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _SwiGLU.apply(x, self.wide)  # type: ignore[no-any-return]

    def sharded_state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Part of Megatron's interface: nothing to save."""
        return {}


class _Rotate(torch.autograd.Function):
    """Rotate each pair (x[i], x[i + d/2]) by its position's angle; the gradient is rotated back."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(table)
        return _rotate(x.to(table.dtype), table[0], table[1])

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        (table,) = ctx.saved_tensors
        return _rotate(grads[0], table[0], -table[1]), None


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    torch.mul(first, cos, out=out[..., :half]).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=out[..., half:]).addcmul_(first, sin)
    return out


class PackedRotary(torch.nn.Module):
    """Rotary angles of the packed positions, computed once per micro-batch instead of once per layer and sequence."""

    wide: torch.dtype | None = None

    def __init__(self, inverse_frequencies: torch.Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.inv_freq, self.dtype = inverse_frequencies, dtype
        self.positions = torch.empty(0, dtype=torch.int64)  # int64 [1, t]

    def prepare(self, positions: torch.Tensor, packed: PackedSequences) -> None:
        """Before every forward pass; positions int64 [1, t]."""
        self.positions = positions

    def get_rotary_seq_len(self, *args: Any) -> int:
        """Part of Megatron's interface; the positions say it all."""
        return 0

    def forward(self, length: int, **kwargs: Any) -> torch.Tensor:
        """[2, t, 1, d/2]: cosines and sines."""
        angles = self.positions.view(-1, 1, 1).float() * self.inv_freq
        if self.wide is not None:
            angles = angles.to(self.wide)
        return torch.stack([angles.cos(), angles.sin()]).to(self.wide or self.dtype)


def apply_rotary(t: torch.Tensor, freqs: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Stands for megatron.core.transformer.attention.apply_rotary_pos_emb: t [t, heads, d].

    ``freqs`` are PackedRotary's, a half of d wide, or those of Megatron's own embedding, d wide.
    """
    if 2 * freqs.shape[-1] == t.shape[-1]:
        return _Rotate.apply(t, freqs)  # type: ignore[no-any-return]
    return apply_rotary_pos_emb(t, freqs, *args, **kwargs)  # type: ignore[no-any-return]


class PackedAttention(torch.nn.Module):
    """Causal attention over packed sequences (THD) by torch's SDPA, with GQA and context parallelism.

    Sequences of similar length are batched; a shorter row is padded on the right, where causality keeps
    the padding invisible. With context parallelism every rank gathers keys and values and attends with its
    own two zig-zag chunks of queries.
    """

    wide: torch.dtype | None = None

    def __init__(self, config: Any, layer_number: int, attn_mask_type: Any, attention_type: str, **kwargs: Any) -> None:
        super().__init__()
        self.scale = 1.0 / math.sqrt(config.kv_channels)
        self.cp_group = kwargs["pg_collection"].cp

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        attn_mask_type: Any = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> torch.Tensor:
        """query [t, heads, d], key and value [t, groups, d] -> [t, heads * d]."""
        assert isinstance(packed_seq_params, PackedSequences)
        if self.wide is not None:
            query, key, value = (x.to(self.wide) for x in (query, key, value))
        if self.cp_group.size() > 1:
            key, value = (gather_from_sequence_parallel_region(x, group=self.cp_group) for x in (key, value))
        repeat = query.shape[1] // key.shape[1]
        grouped = repeat > 1 and accelerator.on_gpu()
        if repeat > 1 and not grouped:  # the CPU's fused kernel wants as many key heads as query heads
            key, value = (x.repeat_interleave(repeat, dim=1) for x in (key, value))
        outputs = []
        for block in packed_seq_params.blocks:
            q, k, v = (block.rows(x, i) for x, i in ((query, block.queries), (key, block.keys), (value, block.keys)))
            out = F.scaled_dot_product_attention(
                q, k, v, attn_mask=block.mask, is_causal=block.mask is None, scale=self.scale, enable_gqa=grouped
            )
            outputs.append(block.flat(out))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)
