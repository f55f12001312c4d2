"""Layers whose results depend on their inputs alone: sums in float64, rounded once to the model's dtype.

In the model's own dtype a sum depends on the order of its terms, and so on the batch, the sharding and the library:
an engine's log-probs are never quite the actor's. Here the order moves the last bits of a float64 at most, which the
rounding takes away. ``rollout.true_on_policy`` does the same to the engine's layers; the two must round at the same
places: what a linear layer, a norm and the activation return, not the logits. Gradients are computed in the model's
dtype as ever.
"""

from typing import Any

import torch
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear, mappings
from megatron.core.transformer.spec_utils import ModuleSpec

from megatron_rl.actor.layers import PackedAttention, RMSNorm, SwiGLU


class _Product(torch.autograd.Function):
    """float64 x @ weight.T of x [..., k] and weight [n, k], whatever they are in."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x.to(weight.dtype), weight)
        return x.double() @ weight.double().t()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        x, weight = ctx.saved_tensors
        grad = grads[0].to(weight.dtype)
        return grad @ weight, grad.flatten(0, -2).t() @ x.flatten(0, -2)


class ColumnParallel(ColumnParallelLinear):  # type: ignore[misc]
    """A linear layer whose rows are shared."""

    def _forward_impl(self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, **how: Any) -> Any:
        if how["sequence_parallel"]:
            input = mappings.gather_from_sequence_parallel_region(
                input, tensor_parallel_output_grad=True, group=how["tp_group"]
            )
        elif how["allreduce_dgrad"]:
            input = mappings.copy_to_tensor_model_parallel_region(input, group=how["tp_group"])
        product = _Product.apply(input, weight)
        return (product if bias is None else product + bias).to(weight.dtype)


class RowParallel(RowParallelLinear):  # type: ignore[misc]
    """A linear layer whose columns are shared: the ranks' parts are summed before they are rounded."""

    def _forward_impl(self, input: torch.Tensor, weight: torch.Tensor, **how: Any) -> Any:
        return _Product.apply(input, weight)

    def forward(self, input_: torch.Tensor) -> Any:
        output, bias = super().forward(input_)
        return output.to(self.weight.dtype), bias


class Norm(RMSNorm):
    """RMSNorm."""

    wide = torch.float64


class Activation(SwiGLU):
    """SwiGLU."""

    wide = torch.float64


class Attention(PackedAttention):
    """Attention that returns float64 for the linear layer behind it to round."""

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return super().forward(query.double(), key.double(), value.double(), *args, **kwargs)


def replace_layers(spec: ModuleSpec) -> None:
    """Have the specification of a dense layer build these."""
    spec.submodules.input_layernorm = spec.submodules.pre_mlp_layernorm = Norm
    inner, mlp = spec.submodules.self_attention.submodules, spec.submodules.mlp.submodules
    inner.linear_qkv = mlp.linear_fc1 = ColumnParallel
    inner.linear_proj = mlp.linear_fc2 = RowParallel
    inner.core_attention, mlp.activation_func = Attention, Activation
    if inner.q_layernorm is RMSNorm:
        inner.q_layernorm = inner.k_layernorm = Norm
