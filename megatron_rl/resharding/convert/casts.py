"""Changing the dtype of rows of a weight, FP8 blocks included. The only part of a conversion that needs torch."""

from typing import Any

import numpy as np
import torch

from megatron_rl.resharding.convert.unfit import UnfitError
from megatron_rl.resharding.folders.stored import FP8, ITEMSIZES, TORCH_DTYPES
from megatron_rl.resharding.layouts.fp8 import BLOCK
from megatron_rl.resharding.quantise import dequantise_blockwise, quantise_blockwise

_CARRIERS = {1: np.uint8, 2: np.int16, 4: np.int32}  # numpy's dtypes that torch takes for any bits of their size

_INSTEAD = {
    "F16": "convert to bfloat16 or float32 instead",
    "BF16": "convert to float32 instead",
    "F32": "its scales are damaged",
}


def tensor_of(bits: np.ndarray[Any, Any], dtype: str, width: int) -> torch.Tensor:
    """Bits as a tensor [rows, width] of their dtype, in the same memory."""
    carried = torch.from_numpy(bits.reshape(-1).view(_CARRIERS[ITEMSIZES[dtype]]))
    return carried.view(getattr(torch, TORCH_DTYPES[dtype])).view(-1, width)


def bits_of(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """A contiguous tensor's bits, flat, in the same memory."""
    size = tensor.element_size()
    carrier = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[size]
    return tensor.reshape(-1).view(carrier).numpy().view({1: np.uint8, 2: np.uint16, 4: np.uint32}[size])


def cast_rows(
    name: str, bits: np.ndarray[Any, Any], scales: np.ndarray[Any, Any] | None, source: str, target: str, width: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any] | None]:
    """Rows in another dtype, and their scales when it is FP8. Rows of FP8 begin and end with tiles.

    Raises UnfitError naming the tensor when it holds a finite number that the target cannot, or, where the target is
    FP8, NaN or infinity, which would take the other numbers of their tile with them.
    """
    tensor = tensor_of(bits, source, width)
    if target == FP8:
        quantised, grid = quantise_blockwise(tensor)
        result = bits_of(quantised), grid.numpy()
        if not bool(grid.isfinite().all()):
            at = _first(~tensor.isfinite())
            value = float(tensor.flatten()[at])
            text = f"Tensor {name} holds {value}, which would make a whole tile of FP8 NaN: convert to another dtype."
            raise UnfitError(text, at, value, result)
        return result
    dtype = getattr(torch, TORCH_DTYPES[target])
    cast = tensor.to(dtype) if scales is None else dequantise_blockwise(tensor, torch.from_numpy(scales), dtype)
    if bool(cast.isinf().any()):
        exact = tensor.double() if scales is None else _exact(tensor, torch.from_numpy(scales))
        lost = cast.isinf() & exact.isfinite()
        if bool(lost.any()):
            at = _first(lost)
            largest = f"{TORCH_DTYPES[target]}'s largest, {torch.finfo(dtype).max:.6g}"
            text = f"Tensor {name} holds numbers beyond {largest}: {_INSTEAD[target]}."
            raise UnfitError(text, at, float(exact.flatten()[at]), (bits_of(cast), None))
    return bits_of(cast), None


def _exact(quantised: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Dequantised without rounding, which float64 allows."""
    rows, cols = quantised.shape
    grid = scales.double().repeat_interleave(BLOCK, 0)[:rows].repeat_interleave(BLOCK, 1)[:, :cols]
    return quantised.double() * grid


def _first(found: torch.Tensor) -> int:
    """Position of the first true element."""
    return int(found.flatten().int().argmax())
