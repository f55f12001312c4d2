"""What ``actor.megatron`` gives Megatron-Core's configurations, and how these say what does not go together."""

import ast
import contextlib
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
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
def readable_refusals(options: Mapping[str, Any], of: str) -> Iterator[None]:
    """Turns what one of Megatron-Core's configurations says of fields that do not go together into an ``InputError``.

    ``options``: those of ``actor.megatron``, of which its own are named.
    """
    try:
        yield
    except (ValueError, AssertionError, RuntimeError) as error:
        known = fields()
        named = [f"actor.megatron.{n}={_written(v)}" for n, v in options.items() if of in known[n].classes]
        said = " ".join(str(error).split()).rstrip(".") or f"they do not go together ({_asserted(error)})"
        raise InputError(
            f"Megatron-Core {machine.installed('megatron-core')} does not take these options "
            f"({', '.join(named) or 'actor'}): {said}."
        ) from error


def _written(value: Any) -> str:
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


def _asserted(error: BaseException) -> str:
    """What did not hold, in Megatron's code, of an error that says nothing."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    for node in ast.walk(ast.parse(Path(place.filename).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Assert) and node.lineno <= (place.lineno or 0) <= (node.end_lineno or 0):
            return f"it wants: {ast.unparse(node.test)}"
    return place.line or type(error).__name__
