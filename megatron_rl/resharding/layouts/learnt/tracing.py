"""A dispatch mode that notes where a weight loader copies, and executes nothing on weights.

Views are let through, copies and fills are noted. What a loader puts together before it copies (``torch.cat``, a clone,
another dtype) and what it derives from a parameter by copying alone (latent attention's two halves of ``kv_b_proj``)
is followed through meta tensors. Everything else that reads or writes a weight is refused.
"""

import contextlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from math import prod
from typing import Any, NoReturn

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_rl.errors import InputError
from megatron_rl.resharding.layout import row_major
from megatron_rl.resharding.layouts.learnt.holders import Box, Holder, View, carry, fill

ADVICE = "Its weights cannot be pulled in place; update this model through the engine's own API."
aten = torch.ops.aten
_SHAPE_ONLY = (aten.empty_like, aten.zeros_like, aten.ones_like, aten.full_like, aten.new_empty, aten.new_zeros)


def _tensors(values: Iterable[Any]) -> list[torch.Tensor]:
    """The tensors among arguments or results, and in lists of them."""
    found = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(value)
    return found


@cache
def _effects(func: Any) -> tuple[tuple[tuple[int, str], ...], bool]:
    """Positions and names of the arguments that an operation changes, and whether its results are views."""
    arguments = enumerate(func._schema.arguments)
    written = tuple((i, a.name) for i, a in arguments if a.alias_info and a.alias_info.is_write)
    return written, any(r.alias_info for r in func._schema.returns)


def _memory_order(tensor: torch.Tensor) -> tuple[int, ...]:
    """The tensor's extents, largest stride first: the index space of its memory."""
    if tensor.is_contiguous():
        return tuple(tensor.shape) or (1,)
    return tuple(n for _, n in sorted(zip(tensor.stride(), tensor.shape, strict=True), reverse=True)) or (1,)


def held_tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of a model with every name it has: parameters, then buffers, then plain attributes."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)
    for prefix, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, torch.Tensor):
                yield f"{prefix}.{name}" if prefix else name, value


@contextlib.contextmanager
def unchanged(model: torch.nn.Module) -> Iterator[None]:
    """Undo what the body assigns to the model's tensors; InputError naming it if it did."""
    places = [
        (f"{prefix}." if prefix else "", mapping, dict(mapping))
        for prefix, module in model.named_modules()
        for mapping in (module._parameters, module._buffers, vars(module))
    ]
    memory = [(name, tensor, tensor.data, tensor.data_ptr()) for name, tensor in held_tensors(model)]
    changed = []
    try:
        yield
    finally:
        for prefix, mapping, before in places:
            for name in mapping.keys() | before.keys():
                values = mapping.get(name), before.get(name)
                if values[0] is values[1] or not any(isinstance(v, torch.Tensor) for v in values):
                    continue
                changed.append(prefix + name)
                mapping.pop(name, None)
                if name in before:
                    mapping[name] = before[name]
        for name, tensor, data, address in memory:
            if tensor.data_ptr() != address:
                changed.append(name)
                tensor.data = data
    if changed:
        raise InputError(
            f"The model's own load_weights assigns another tensor to {changed[0]} instead of filling the one that is "
            f"there. {ADVICE}"
        )


class Memory:
    """What is traced: the model's memory by address, meta tensors by storage."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._starts: list[int] = []
        self._regions: list[tuple[int, Holder, torch.Tensor]] = []  # (end, ...), in the order of their addresses
        self._order: list[tuple[Holder, torch.Tensor]] = []
        self._storages: dict[int, tuple[Holder, torch.Tensor]] = {}
        found = [(name, t) for name, t in held_tensors(model) if t.numel()]
        parameters = [x for x in found if isinstance(x[1], torch.nn.Parameter)]
        # of two where one lies inside the other, the larger one
        for name, tensor in sorted(parameters, key=lambda x: -x[1].numel() * x[1].element_size()):
            self._keep(name, tensor)
        for name, tensor in found:
            if not isinstance(tensor, torch.nn.Parameter):
                self._keep(name, tensor)
        order = {name: i for i, (name, _) in enumerate(found)}
        self._order.sort(key=lambda x: order[x[0].name])

    def _keep(self, name: str, tensor: torch.Tensor) -> None:
        must = isinstance(tensor, torch.nn.Parameter)
        if tensor.device.type == "meta":
            if must:
                raise InputError(f"Parameter {name} has no memory (device meta): load the model before learning it.")
            return
        index = _memory_order(tensor)
        reach = 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
        dense = _steps(index, row_major(index)) == _steps(tensor.shape, tensor.stride())
        start = tensor.data_ptr()
        end = start + reach * tensor.element_size()
        at = bisect_right(self._starts, start)
        inside = at > 0 and end <= self._regions[at - 1][0]
        apart = (at == 0 or self._regions[at - 1][0] <= start) and (at == len(self._starts) or end <= self._starts[at])
        if apart and dense:
            holder = Holder(name, index, tensor.dtype, parameter=must)
            self._starts.insert(at, start)
            self._regions.insert(at, (end, holder, tensor))
            self._order.append((holder, tensor))
        elif must and not inside:
            raise InputError(
                f"Parameter {name} of shape {list(tensor.shape)} and strides {list(tensor.stride())} "
                f"{'overlaps another one' if dense else 'has gaps in memory'}. {ADVICE}"
            )

    def kept(self) -> list[tuple[Holder, torch.Tensor]]:
        """The model's own, in the order of ``held_tensors``."""
        return self._order

    def hold(self, holder: Holder, tensor: torch.Tensor) -> None:
        """Trace a tensor's storage from now on; its index space is the tensor's, in the order of its memory."""
        self._storages[tensor.untyped_storage()._cdata] = holder, tensor  # alive, so that no other gets its address

    def offer(self, name: str, tensor: torch.Tensor) -> None:
        """Trace a canonical tensor, contiguous."""
        index = tuple(tensor.shape) or (1,)
        holder = Holder(name, index, tensor.dtype)
        holder.written.append(Box((0,) * len(index), index, name, 0, row_major(index), frozenset()))
        self.hold(holder, tensor)

    def find(self, tensor: torch.Tensor) -> tuple[Holder, View] | None:
        """Where a tensor lies; None for one that is not traced."""
        shape, steps = tuple(tensor.shape), tensor.stride()
        found = self._storages.get(tensor.untyped_storage()._cdata)
        if found is not None:
            return found[0], View(int(tensor.storage_offset()), shape, steps)
        if tensor.device.type == "meta" or not tensor.numel():
            return None
        address = tensor.data_ptr()
        at = bisect_right(self._starts, address) - 1
        if at < 0 or address >= self._regions[at][0]:
            return None
        _, holder, whole = self._regions[at]
        return holder, View((address - whole.data_ptr()) // whole.element_size(), shape, steps)


def _steps(shape: Iterable[int], strides: Iterable[int]) -> list[tuple[int, int]]:
    return sorted((step, n) for n, step in zip(shape, strides, strict=True) if n > 1)


class Trace(TorchDispatchMode):
    """Notes copies between the tensors of a ``Memory``. ``current`` is the canonical tensor now being loaded."""

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        self.memory = memory
        self.current = ""
        self._numbers: dict[float, torch.Tensor] = {}  # what .item() gave out -> the element it stands for
        self._fresh: dict[int, torch.Tensor] = {}  # made during the trace, by storage
        self._noted: dict[Any, Callable[..., Any]] = {
            aten.copy_: self._copy,
            aten.fill_: self._fill,
            aten.zero_: self._fill,
            aten.clone: self._clone,
            aten._to_copy: self._clone,
            aten.cat: self._cat,
            aten.stack: self._stack,
            aten._local_scalar_dense: self._item,
        }

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and to tell torch.compile so would import it, which takes seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        changes, view = _effects(func)
        if view and not changes:
            return func(*args, **kwargs)
        written = _tensors(args[i] if i < len(args) else kwargs.get(name) for i, name in changes)
        weights = [t for t in _tensors((*args, *kwargs.values())) if self._weight(t)]
        noted = self._noted.get(func.overloadpacket)
        if noted is not None and (weights or written):
            return noted(func, *args, **kwargs)
        for tensor in written:
            if weights or not self._is_fresh(tensor):
                self._refuse(func, tensor)
        if weights and func.overloadpacket not in _SHAPE_ONLY:
            self._refuse(func, weights[0])
        result = func(*args, **kwargs)
        for tensor in _tensors([result]) if not changes else ():
            self._fresh[tensor.untyped_storage()._cdata] = tensor
        return result

    def _weight(self, tensor: torch.Tensor) -> tuple[Holder, View] | None:
        """Where a canonical tensor lies, a parameter, or anything that got elements of one; None for constants."""
        found = self.memory.find(tensor)
        return found if found and (found[0].written or found[0].parameter) else None

    def _is_fresh(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._fresh

    def _refuse(self, func: Any, tensor: torch.Tensor) -> NoReturn:
        found = self.memory.find(tensor)
        what = found[0].name if found else "a tensor that is no parameter, buffer or attribute of its modules"
        raise InputError(
            f"The model's own load_weights applies {func} to {what} while it loads {self.current}; only copies can be "
            f"followed. {ADVICE}"
        )

    def _place(self, func: Any, tensor: torch.Tensor) -> tuple[Holder, View]:
        """Where a tensor that is written to lies."""
        found = self.memory.find(tensor)
        if found is None:
            if not self._is_fresh(tensor):
                self._refuse(func, tensor)
            made = self._fresh[tensor.untyped_storage()._cdata]
            self._constant(func, made)
            self._hold(made)
            self._fill(func, made)
            return self._place(func, tensor)
        holder, view = found
        end = view.offset + sum((n - 1) * step for n, step in zip(view.shape, view.steps, strict=True))
        if holder.dtype != tensor.dtype or end >= prod(holder.index):
            self._refuse(func, tensor)
        return found

    def _hold(self, tensor: torch.Tensor) -> None:
        self.memory.hold(Holder(f"what it makes of {self.current}", _memory_order(tensor), tensor.dtype), tensor)

    def _constant(self, func: Any, value: torch.Tensor | float) -> None:
        """Refuse a constant that may have been computed from a number of a weight that .item() gave out, and any but
        zero: what a swap writes there is zero.
        """
        constant = torch.as_tensor(value)
        if (constant.device.type == "meta" and self._numbers) or (constant.device.type != "meta" and constant.any()):
            self._refuse(func, constant)

    def _copy(self, func: Any, target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        if not target.numel():
            return target
        found = self._weight(source)
        if found is None and self.memory.find(target) is None and self._is_fresh(target):
            return func(target, source)  # nothing of a weight
        holder, place = self._place(func, target)
        if found is None:
            self._constant(func, source)
            fill(holder, place)
        elif found[0].dtype != source.dtype:
            self._refuse(func, source)
        else:
            view = found[1]._replace(shape=place.shape, steps=source.expand(target.shape).stride())
            if not carry(found[0], view, holder, place):
                raise InputError(
                    f"The model's own load_weights reads {found[0].name} while it loads {self.current}, before all of "
                    f"it was loaded. {ADVICE}"
                )
        return target

    def _fill(self, func: Any, target: torch.Tensor, value: Any = 0) -> torch.Tensor:
        if isinstance(value, torch.Tensor):
            return self._copy(func, target, value)
        if value in self._numbers:
            return self._copy(func, target, self._numbers[value])
        if not target.numel():
            return target
        if self.memory.find(target) is None and self._is_fresh(target):
            return func(target, value) if func.overloadpacket is aten.fill_ else func(target)
        self._constant(func, value)
        fill(*self._place(func, target))
        return target

    def _clone(self, func: Any, source: torch.Tensor, **options: Any) -> torch.Tensor:
        made = torch.empty_like(
            source,
            dtype=options.get("dtype") or source.dtype,
            device="meta",
            memory_format=options.get("memory_format") or torch.preserve_format,
        )
        self._hold(made)
        return self._copy(func, made, source)

    def _cat(self, func: Any, tensors: list[torch.Tensor], dim: int = 0) -> torch.Tensor:
        made = torch.cat([t.to("meta") for t in tensors], dim)
        self._hold(made)
        begin = 0
        for tensor in tensors:
            if tensor.numel():
                self._copy(func, made.narrow(dim, begin, tensor.shape[dim]), tensor)
                begin += tensor.shape[dim]
        return made

    def _stack(self, func: Any, tensors: list[torch.Tensor], dim: int = 0) -> torch.Tensor:
        made = torch.stack([t.to("meta") for t in tensors], dim)
        self._hold(made)
        for i, tensor in enumerate(tensors):
            self._copy(func, made.select(dim, i), tensor)
        return made

    def _item(self, func: Any, source: torch.Tensor) -> float:
        """A number that stands for the element until it is filled into something."""
        if not source.is_floating_point():
            self._refuse(func, source)
        number = 1e9 + 0.5 + len(self._numbers)
        self._numbers[number] = source
        return number
