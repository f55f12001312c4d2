"""LoRA (Hu et al. 2021): matrices W + s B A with W fixed, s = alpha / rank; A and B alone are trained.

A matrix in use holds the sum, rounded to the model's dtype, which every update makes anew from a copy of W on the host
(``Adapters.merge``). So the forward pass is the one that a model without adapters has, engines and exported folders get
the very numbers that the actor computes with, and on-policy stays exact. The backward pass needs no gradient of the
whole matrix: with y = x (W + s B A)^T, grad B = s grad_y^T (x A^T) and grad A = s (grad_y B)^T x, products of width
``rank``; grad_x is the linear layer's own. The price is the copy, and one pass over W at each update.

A and B are float32 whatever the model's dtype: they are their own masters, and what the rounding of the sum takes away
is not lost to them.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel import mappings
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint

from megatron_rl.actor.config import LoRAConfig
from megatron_rl.actor.tuning.names import Target
from megatron_rl.resharding.families.table import Kind


class Adapter(torch.nn.Module):
    """The matrices of one linear layer, of which every tensor-parallel rank has its part: A [rank, in] is split where
    the layer's input is, B [out, rank] where its output is, and the other one is on every rank, with the whole
    gradient. Pipeline, context and data parallelism are Megatron's, as for any parameter."""

    linear: Any

    def __init__(self, target: Target, linear: torch.nn.Module, config: LoRAConfig, seed: int, sequence: bool) -> None:
        """``linear``: Megatron's own or Transformer Engine's; from now on its gradients reach A and B.

        ``sequence``: activations between tensor-parallel regions are split. A is drawn by the layer's name, from a
        uniform distribution within 1 / sqrt(in), as PEFT has it; B is zero.
        """
        super().__init__()
        self.target, self.scale, self.sequence = target, config.alpha / config.rank, sequence
        self.rows = target.kind is Kind.ROW  # the input's features are split, and its products summed
        self.group = parallel_state.get_tensor_model_parallel_group()
        object.__setattr__(self, "linear", linear)  # no child: it stands in the model already
        weight, ways, device = self.linear.weight, self.group.size(), self.linear.weight.device
        features = weight.shape[1] * (ways if self.rows else 1)
        a = drawn(f"{seed}/{target.name}", config.rank, features)
        if self.rows:
            a = a.chunk(ways, 1)[self.group.rank()]
        self.a = torch.nn.Parameter(a.clone().to(device))
        self.b = torch.nn.Parameter(torch.zeros(weight.shape[0], config.rank, device=device))
        split: Any = self.a if self.rows else self.b  # the other one counts once in the gradient's norm
        split.tensor_model_parallel, split.partition_dim, split.partition_stride = True, int(self.rows), 1
        self.base = torch.empty(0)  # W, on the host
        linear.register_forward_hook(self._through)

    def _through(self, linear: torch.nn.Module, inputs: tuple[torch.Tensor, ...], outputs: Any) -> Any:
        """The layer's result, whose gradient reaches A and B too."""
        if not torch.is_grad_enabled():
            return outputs
        y, bias = outputs
        return _Gradients.apply(y, inputs[0].detach(), self.a, self.b, self), bias

    def keep_base(self) -> None:
        """Take the matrix in use for W."""
        self.base = self.linear.weight.data.to("cpu", copy=True)

    @torch.no_grad()
    def merge(self) -> None:
        """Have the matrix in use hold W + s B A; its memory stays the same."""
        weight = self.linear.weight.data
        weight.copy_(torch.addmm(self.base.to(weight.device).float(), self.b, self.a, alpha=self.scale))

    def normed(self, x: torch.Tensor) -> torch.Tensor:
        """What the matrix multiplies: Transformer Engine has the norm before it inside the same layer."""
        gain = getattr(self.linear, "layer_norm_weight", None)
        if gain is None:
            return x
        wide = x.float()
        scale = (wide.square().mean(-1, keepdim=True) + self.linear.eps).rsqrt_()
        return (wide * scale).to(x.dtype) * gain

    def sharded_state_dict(self, prefix: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """A and B as they lie in a checkpoint: whole, in Megatron's order."""
        entries: dict[str, Any] = make_sharded_tensors_for_checkpoint(
            {"a": self.a, "b": self.b},
            prefix,
            {"a": 1} if self.rows else {"b": 0},
            tp_group=self.group,
            dp_cp_group=metadata["dp_cp_group"],
        )
        if self.target.kind is Kind.COLUMN and len(self.target.parts) > 1:  # every rank's rows are [gate; up]
            entries[f"{prefix}b"] = apply_swiglu_sharded_factory(entries[f"{prefix}b"], ())
        return entries


class Adapters(torch.nn.Module):
    """Those of one model chunk, by their layers' names."""

    def __init__(self, adapters: Iterable[Adapter]) -> None:
        super().__init__()
        for adapter in adapters:
            self.add_module(adapter.target.name.replace(".", "/"), adapter)

    def each(self) -> Iterable[Adapter]:
        """All of them."""
        return self.children()  # type: ignore[return-value]

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Part of Megatron's interface."""
        assert metadata is not None
        found: dict[str, Any] = {}
        for name, adapter in self.named_children():
            assert isinstance(adapter, Adapter)
            found |= adapter.sharded_state_dict(f"{prefix}{name}.", metadata)
        return found


class _Gradients(torch.autograd.Function):
    """y as it is; its gradient is passed on, and A and B get theirs. ``x``: the layer's input [t, 1, in]."""

    @staticmethod
    def forward(
        ctx: Any, y: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, adapter: Adapter
    ) -> torch.Tensor:
        ctx.save_for_backward(x, a, b)
        ctx.adapter = adapter
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        (grad,), (x, a, b), adapter = grads, ctx.saved_tensors, ctx.adapter
        group, scale, parted = adapter.group, adapter.scale, adapter.group.size() > 1
        grad_y = grad.flatten(0, -2)
        x = adapter.normed(x).flatten(0, -2).to(grad.dtype)  # wider where sums are float64
        narrow, back = x @ a.to(x.dtype).t(), grad_y @ b.to(x.dtype)  # [t, rank]
        if parted and adapter.rows:  # x has a part of the features; grad_y all of them, of a part of the tokens
            if adapter.sequence:
                narrow = mappings.reduce_scatter_to_sequence_parallel_region(narrow, group=group)
                back = mappings.gather_from_sequence_parallel_region(back, False, group=group)
            else:
                dist.all_reduce(narrow, group=group)
        elif parted and adapter.sequence:  # the other way round
            narrow = mappings.gather_from_sequence_parallel_region(narrow, False, group=group)
            back = mappings.reduce_scatter_to_sequence_parallel_region(back, group=group)
        grad_a, grad_b = (back.t() @ x).float().mul_(scale), (grad_y.t() @ narrow).float().mul_(scale)
        if parted:  # what every rank has whole has to be summed over all features, or all tokens
            if not adapter.rows:
                dist.all_reduce(grad_a, group=group)
            elif adapter.sequence:
                dist.all_reduce(grad_b, group=group)
        return grad, None, grad_a, grad_b, None


def drawn(place: str, rank: int, features: int) -> torch.Tensor:
    """A whole A [rank, features], float32: the same wherever it is drawn."""
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(place.encode()).digest()[:8], "big") >> 1)
    bound = 1 / math.sqrt(features)
    return torch.empty(rank, features).uniform_(-bound, bound, generator=generator)
