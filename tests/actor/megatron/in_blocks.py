"""Stands for Transformer Engine's weights in FP8, and for what Megatron asks of it, on a CPU.

A tensor that says that it is bfloat16 and keeps e4m3 numbers with a float32 scale for every block; operations see it
dequantised, ``copy_`` and an assigned ``data`` quantise, and it has no memory that others could read: as
``transformer_engine/pytorch/quantized_tensor.py`` and ``tensor/float8_blockwise_tensor.py`` have it (2.20).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import fp8_utils
from megatron.core.distributed import param_and_grad_buffer
from torch.utils._pytree import tree_map

BLOCK = 16
_aten = torch.ops.aten


def _scales(weight: torch.Tensor) -> torch.Tensor:
    """Largest magnitude of every block of [rows, columns]."""
    rows, columns = (-(-size // BLOCK) * BLOCK for size in weight.shape)
    whole = torch.zeros(rows, columns)
    whole[: weight.shape[0], : weight.shape[1]] = weight.float()
    return whole.view(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK).abs().amax((1, 3))


def _each(scales: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    return scales.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)[: shape[0], : shape[1]]


class _Same(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Any) -> Any:
        return tensor.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0]


class InBlocks(torch.Tensor):
    """A weight [rows, columns]."""

    codes: torch.Tensor  # uint8 [rows, columns]
    inverse: torch.Tensor  # float32: what a block's numbers are multiplied with
    gathered = 0

    @staticmethod
    def __new__(cls, codes: torch.Tensor, inverse: torch.Tensor, requires_grad: bool = False) -> "InBlocks":
        made = torch.Tensor._make_wrapper_subclass(
            cls, codes.shape, dtype=torch.bfloat16, device=codes.device, requires_grad=requires_grad
        )
        made.codes, made.inverse = codes, inverse
        return made

    @classmethod
    def of(cls, weight: torch.Tensor) -> "InBlocks":
        made = cls(torch.zeros(weight.shape, dtype=torch.uint8), torch.ones_like(_scales(weight)))
        made.quantize_(weight)
        return made

    def quantize_(self, weight: torch.Tensor) -> "InBlocks":
        self.quantize_with(weight, _scales(weight), slice(0, weight.numel()))
        return self

    def quantize_with(self, weight: torch.Tensor, largest: torch.Tensor, part: slice) -> None:
        scales = torch.where(largest > 0, 448.0 / largest, torch.ones_like(largest))
        codes = (weight.float() * _each(scales, weight.shape)).to(torch.float8_e4m3fn).view(torch.uint8)
        self.codes.view(-1)[part].copy_(codes.view(-1)[part])
        self.inverse.copy_(1 / scales)

    def dequantize(self, *, dtype: torch.dtype | None = None) -> torch.Tensor:
        numbers = self.codes.view(torch.float8_e4m3fn).float() * _each(self.inverse, self.codes.shape)
        return numbers.to(dtype or torch.bfloat16)

    def float(self) -> torch.Tensor:
        return self.dequantize(dtype=torch.float32)

    def detach(self) -> "InBlocks":
        return InBlocks(self.codes, self.inverse)

    def expand_as(self, other: torch.Tensor) -> torch.Tensor:
        return _Same.apply(self) if other is self else super().expand_as(other)

    def untyped_storage(self) -> torch.UntypedStorage:
        return torch.UntypedStorage(0)

    def data_ptr(self) -> int:
        raise RuntimeError("there is no memory at an address")

    def _get_data(self) -> "InBlocks":
        return self

    def _set_data(self, tensor: torch.Tensor) -> None:
        self.quantize_(tensor.dequantize() if isinstance(tensor, InBlocks) else tensor)

    data = property(_get_data, _set_data)  # type: ignore[assignment]

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"InBlocks{tuple(self.codes.shape)}"

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _aten.detach.default:
            return args[0].detach()
        if func is _aten.view.default and tuple(args[1]) != tuple(args[0].shape):
            raise NotImplementedError("quantised weights have no views")
        plain = tree_map(lambda arg: arg.dequantize() if isinstance(arg, InBlocks) else arg, (args, kwargs or {}))
        if func is _aten.copy_.default and isinstance(args[0], InBlocks):
            args[0].quantize_(plain[0][1])
            return args[0]
        if func._schema.is_mutable and isinstance(args[0], InBlocks):
            func(*plain[0], **plain[1])
            args[0].quantize_(plain[0][0])
            return args[0]
        return func(*plain[0], **plain[1])


def _replace(tensor: InBlocks, memory: torch.Tensor) -> None:
    memory.detach().copy_(tensor.codes)
    tensor.codes = memory


def _quantise_parts(weights: Any, mains: Any, starts: Any, group: Any, fsdp: Any = None) -> None:
    """Each rank the part that its optimiser has, with the scale of the whole block."""
    for weight, main, start in zip(weights, mains, starts, strict=True):
        whole, part = torch.zeros(math.prod(weight.shape), dtype=torch.bfloat16), slice(0, 0)
        if main is not None:
            part = slice(start, start + main.numel())
            whole[part] = main.detach().to(torch.bfloat16)
        whole = whole.view(weight.shape)
        largest = _scales(whole)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=group)
        weight.quantize_with(whole, largest, part)


def _after_gathering(weights: list[InBlocks]) -> None:
    for weight in weights:
        weight.gathered += 1


class _Done:
    def wait(self) -> None:
        """It is."""


@contextmanager
def _one_by_one(*args: Any, **kwargs: Any) -> Iterator[_Done]:
    yield _Done()


def _at_once(exchange: Any) -> Any:
    def run(*args: Any, async_op: bool = False, **kwargs: Any) -> None:
        exchange(*args, **kwargs)

    return run


def stand_in() -> None:
    """From now on Megatron takes ``InBlocks`` for Transformer Engine's tensors, and layers' weights are such."""
    from megatron_rl.actor import model
    from megatron_rl.actor.modules.true_on_policy import ColumnParallel, RowParallel

    there: Any = fp8_utils
    if there.HAVE_TE_FP8_TENSOR_CLASS:
        return
    there.HAVE_TE_FP8_TENSOR_CLASS, there.FP8_TENSOR_CLASS = True, InBlocks
    there._modify_underlying_storage_impl, there._quantize_param_shard_impl = _replace, _quantise_parts
    there.te_post_all_gather_processing = _after_gathering
    there.dequantize_fp8_tensor = InBlocks.dequantize
    # Gloo joins the tensors of one group as if they had one dtype; NCCL takes each by itself.
    buffers: Any = param_and_grad_buffer
    buffers._coalescing_manager = _one_by_one
    for name in ("dist_all_gather_func", "dist_reduce_scatter_func"):
        setattr(buffers, name, _at_once(getattr(buffers, name)))

    class Policy(model.PolicyModel):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            for module in self.modules():
                if isinstance(module, ColumnParallel | RowParallel):
                    made = torch.nn.Parameter(InBlocks.of(module.weight.detach().bfloat16()))
                    made.__dict__.update(module.weight.__dict__ | made.__dict__)
                    made.get_high_precision_init_val = lambda: torch.full((1,), math.nan)  # as fp8_model_init leaves it
                    made._high_precision_init_val = None
                    module.weight = made

    model.PolicyModel = Policy  # type: ignore[misc]
