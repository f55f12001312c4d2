"""Changing the dtype of rows of a weight, FP8 blocks included. The only part of a conversion that needs torch."""

from typing import Any

import numpy as np
import torch

from megatron_rl.errors import InputError
from megatron_rl.resharding.fp8 import dequantise_blockwise, quantise_blockwise
from megatron_rl.resharding.stored import FP8, ITEMSIZES, TORCH_DTYPES

_CARRIERS = {1: np.uint8, 2: np.int16, 4: np.int32}  # numpy's dtypes that torch takes for any bits of their size


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

    Raises InputError naming the tensor when it holds a finite number that the target cannot.
    """
    tensor = tensor_of(bits, source, width)
    if source == FP8:
        assert scales is not None
        to = torch.float32 if target == FP8 else getattr(torch, TORCH_DTYPES[target])
        tensor = dequantise_blockwise(tensor, torch.from_numpy(scales), to)
    if target == FP8:
        quantised, grid = quantise_blockwise(tensor)
        return bits_of(quantised), grid.numpy()
    cast = tensor.to(getattr(torch, TORCH_DTYPES[target]))
    if target == "F16" and bool((cast.isinf() & ~tensor.isinf()).any()):
        raise InputError(
            f"Tensor {name} holds numbers beyond float16's largest, 65504: convert to bfloat16 or float32 instead."
        )
    return bits_of(cast), None
