"""Layers whose results depend on their inputs alone: sums in float64, rounded once to the model's dtype.

In the model's own dtype a sum depends on the order of its terms, and so on the batch, the sharding and the library:
an engine's log-probs are never quite the actor's. Here the order moves the last bits of a float64 at most, which the
rounding takes away. ``megatron_rl.rollout.embedded.true_on_policy`` does the same to the engine's layers; the two must
round at the same places: what a linear layer, a norm and the activation return, not the logits. Gradients are computed
in the model's dtype as ever.
"""

from typing import Any

import torch
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear, mappings


class _Product(torch.autograd.Function):
    """x @ weight.T of x [..., k] and weight [n, k], summed and returned in ``wide``."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, wide: torch.dtype) -> torch.Tensor:
        ctx.save_for_backward(x.to(weight.dtype), weight)
        return x.to(wide) @ weight.to(wide).t()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        x, weight = ctx.saved_tensors
        grad = grads[0].to(weight.dtype)
        of_weight = grad.flatten(0, -2).t() @ x.flatten(0, -2) if ctx.needs_input_grad[1] else None
        return grad @ weight, of_weight, None


class ColumnParallel(ColumnParallelLinear):  # type: ignore[misc]
    """A linear layer whose rows are shared."""

    wide: torch.dtype | None = None

    def _forward_impl(self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, **how: Any) -> Any:
        if self.wide is None:
            return super()._forward_impl(input=input, weight=weight, bias=bias, **how)
        if how["sequence_parallel"]:
            input = mappings.gather_from_sequence_parallel_region(
                input, tensor_parallel_output_grad=True, group=how["tp_group"]
            )
        elif how["allreduce_dgrad"]:
            input = mappings.copy_to_tensor_model_parallel_region(input, group=how["tp_group"])
        product = _Product.apply(input, weight, self.wide)
        return (product if bias is None else product + bias).to(weight.dtype)


class RowParallel(RowParallelLinear):  # type: ignore[misc]
    """A linear layer whose columns are shared: the ranks' parts are summed before they are rounded."""

    wide: torch.dtype | None = None

    def _forward_impl(self, input: torch.Tensor, weight: torch.Tensor, **how: Any) -> Any:
        if self.wide is None:
            return super()._forward_impl(input=input, weight=weight, **how)
        return _Product.apply(input, weight, self.wide)

    def forward(self, input_: torch.Tensor) -> Any:
        output, bias = super().forward(input_)
        return output.to(self.weight.dtype), bias


def use_wide_sums(model: torch.nn.Module) -> None:
    """From now on the model's layers, those of ``megatron_rl.actor.modules.layers`` too, compute so."""
    for module in model.modules():
        if hasattr(module, "wide"):
            setattr(module, "wide", torch.float64)  # noqa: B010 (a plain attribute, which torch's stubs do not know)
