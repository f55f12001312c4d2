"""What the rooms' config.py say about their options: default, comment, allowed values."""

import ast
import dataclasses
import inspect
import textwrap
import typing
from typing import Any

from megatron_rl.config import Config
from megatron_rl.option import allowed

TYPES = {
    int: "a whole number",
    float: "a number",
    float | None: "a number or null",
    bool: "true or false",
    bool | None: "true, false or null",
    str: "text",
    list[str]: "texts, in a list or with commas between them",
    dict[str, float]: "names with numbers",
    dict[str, str]: "names with text",
    dict[str, Any]: "keys with values",
    dict[str, dict[str, Any]]: "names with keyword arguments",
}


@dataclasses.dataclass(frozen=True)
class Documented:
    """One option as its room's config.py declares it."""

    key: str
    default: str
    text: str  # the comment beside it
    choices: tuple[str, ...]
    range: str  # of a number: "0 or more"
    type: str  # "a whole number", "text", …


def documented(cls: type = Config, prefix: str = "") -> list[Documented]:
    """Every option, in the order of the tree."""
    comments, hints, values, found = _comments(cls), typing.get_type_hints(cls), cls(), []
    for field in dataclasses.fields(cls):
        key, hint, value = f"{prefix}{field.name}", hints[field.name], getattr(values, field.name)
        if dataclasses.is_dataclass(hint):
            found += documented(hint, f"{key}.")  # type: ignore[arg-type]
            continue
        default = str(value).lower() if isinstance(value, bool) else str(value)
        if isinstance(value, list):
            default = ",".join(value)
        rule = allowed(field)
        range = "" if rule.choices else str(rule)
        found.append(Documented(key, default, comments[field.name], rule.choices, range, TYPES[hint]))
    return found


def _comments(cls: type) -> dict[str, str]:
    """What is written beside the fields."""
    source = textwrap.dedent(inspect.getsource(cls))
    lines, found = source.splitlines(), {}
    for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            said = [line.partition("  # ")[2] for line in lines[node.lineno - 1 : node.end_lineno]]
            found[node.target.id] = " ".join(filter(None, said))
    return found


def groups(cls: type = Config, prefix: str = "") -> dict[str, str]:
    """Every group of options with what its docstring says, in the order of the tree."""
    found = {prefix.rstrip("."): inspect.getdoc(cls) or ""} if prefix else {}
    for name, hint in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            found |= groups(hint, f"{prefix}{name}.")  # type: ignore[arg-type]
    return found
