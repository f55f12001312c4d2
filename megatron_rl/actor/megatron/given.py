"""What ``actor.megatron`` gives Megatron-Core's configurations, and how these say what does not go together."""

import ast
import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from megatron.core.transformer import enums

from megatron_rl.actor.megatron.fields import DTYPES, fields, members
from megatron_rl.errors import InputError
from megatron_rl.system import machine


def given(options: Mapping[str, Any], of: str) -> dict[str, Any]:
    """The fields of one configuration (``fields.TRANSFORMER`` ...), as it takes them.

    A name that several configurations have goes to each: Megatron means them to agree.
    """
    known = fields()
    return {name: _meant(known[name].type, value) for name, value in options.items() if of in known[name].classes}


def _meant(type_: ast.expr, value: Any) -> Any:
    """A value as Megatron has it: a dtype, a member of an enumeration, a tuple, or the value itself."""
    name = ast.unparse(type_)
    if "torch.dtype" in name and value in DTYPES:
        return getattr(torch, value)
    if isinstance(value, str) and value in members(name):
        return getattr(enums, name)[value]
    return tuple(value) if isinstance(value, list) and "Tuple" in name else value


@contextlib.contextmanager
def readable_refusals() -> Iterator[None]:
    """Turns what Megatron-Core's configurations say of fields that do not go together into an ``InputError``."""
    try:
        yield
    except (ValueError, AssertionError, RuntimeError) as error:
        said = " ".join(str(error).split()).rstrip(".") or "they do not go together"
        raise InputError(
            f"Megatron-Core {machine.installed('megatron-core')} does not take these options (actor, actor.megatron): "
            f"{said}."
        ) from error
