"""Weights that layers keep in FP8 (``actor.fp8_weights``); here alone they are read and written in bfloat16.

Transformer Engine's ``QuantizedTensor`` has no memory of its own that others could read, and assigning its ``data``
quantises in place, so that what is there is lost. Reading and writing back gives the same numbers: weights are
quantised from bfloat16 ones (``quantize_master_weights`` rounds the optimiser's to them first), and of a block the
largest, 448 times its scale, rounds to the bfloat16 number that it was; the same largest gives the same scale, and with
that every number of three bits behind its first is found again. Where scales are powers of two, all are exact.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from megatron.core.fp8_utils import is_float8tensor

_INITIAL = ("get_high_precision_init_val", "clear_high_precision_init_val", "_high_precision_init_val")


def is_quantised(tensor: Any) -> bool:
    """Whether it is one of Transformer Engine's quantised tensors."""
    return torch.is_tensor(tensor) and bool(is_float8tensor(tensor))


@torch.no_grad()
def value(parameter: torch.Tensor) -> torch.Tensor:
    """A weight as it is, or a copy of one in FP8, in bfloat16."""
    if is_quantised(parameter):
        return parameter.dequantize(dtype=torch.bfloat16)  # type: ignore[call-arg, no-any-return]
    return parameter.data


@torch.no_grad()
def assign(parameter: torch.Tensor, new: torch.Tensor) -> None:
    """Have a weight be ``new``, of its shape and dtype, on its device; one in FP8 is quantised from it."""
    if is_quantised(parameter):
        parameter.copy_(new)
    else:
        parameter.data = new


class QuantisedWeights:
    """Those of one rank's model that are in FP8, by local name; of a model without, nothing."""

    def __init__(self, weights: Mapping[str, torch.nn.Parameter]) -> None:
        self.weights = {name: p for name, p in weights.items() if is_quantised(p)}
        self._copies: dict[str, torch.Tensor] = {}
        self._begin: dict[torch.Tensor, torch.Tensor] = {}  # what the optimiser's float32 weights shall be, or a part
        for p in self.weights.values():
            for name in _INITIAL:  # random numbers, which Megatron would take for the optimiser's weights
                p.__dict__.pop(name, None)

    def read(self) -> dict[str, torch.Tensor]:
        """Copies in bfloat16, always in the same memory; contiguous."""
        for name, p in self.weights.items():
            if name not in self._copies:
                self._copies[name] = torch.empty(p.shape, dtype=torch.bfloat16, device=p.device)
            self._copies[name].copy_(value(p))
        return dict(self._copies)

    def write(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Quantise these in bfloat16, whose numbers the next optimiser begins with; others are left alone."""
        for name, p in self.weights.items():
            assign(p, tensors[name])
            if hasattr(p, "main_grad"):  # it is trained
                self._begin[p] = tensors[name].to("cpu", copy=True)

    def keep(self, optimizer: Any) -> None:
        """Note with what an optimiser's successor begins, in bfloat16 as without FP8."""
        for p, main, _ in self._mains(optimizer):
            self._begin[p] = main.detach().to("cpu", torch.bfloat16)

    def begin(self, optimizer: Any) -> None:
        """Have a fresh optimiser begin with what is noted, not with what FP8 has left of it."""
        for p, main, part in self._mains(optimizer):
            known = self._begin[p].view(-1)
            main.data.copy_(known if known.numel() == main.numel() else known[part])
        self._begin.clear()

    def finite(self, optimizer: Any) -> list[torch.Tensor]:
        """Whether the optimiser's float32 weights are: in FP8 infinity may be a large number."""
        return [main.isfinite().all() for _, main, _ in self._mains(optimizer)]

    def _mains(self, optimizer: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor, slice]]:
        """Each weight, the part of it in float32 that this rank's optimiser has, and where that lies in it."""
        for each in () if optimizer is None else optimizer.chained_optimizers:
            if each.optimizer is None:  # this rank trains none of these weights
                continue
            groups = zip(each.model_float16_groups, each.shard_fp32_from_float16_groups, strict=True)
            for p, main in ((p, main) for group in groups for p, main in zip(*group, strict=True)):
                if is_quantised(p):
                    part = each._get_model_param_range_map(p)["param"]
                    yield p, main, slice(part.start, part.end)
