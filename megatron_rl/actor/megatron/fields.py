"""The fields of Megatron-Core's own configurations, read from the source that is installed. Imports no torch.

A value is what YAML can say of a type: true and false, numbers, text, lists; a dtype is its name, a member of an
enumeration its own.
"""

import ast
import functools
import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TRANSFORMER, OPTIMIZER, REDUCTION = "TransformerConfig", "OptimizerConfig", "DistributedDataParallelConfig"
DTYPES = ("float32", "bfloat16", "float16", "float64", "uint8")
_FILES = {  # of each configuration, those that define its fields; the last one wins
    TRANSFORMER: ("model_parallel_config.py", "transformer/transformer_config.py"),
    OPTIMIZER: ("optimizer/optimizer_config.py",),
    REDUCTION: ("distributed/distributed_data_parallel_config.py",),
}
_ENUMERATIONS = "transformer/enums.py"
_BASES = {"model_parallel_config.py": "ModelParallelConfig"}
_PLAIN = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "a text", "list": "a list"}


@dataclass(frozen=True)
class Field:
    """One field, of one configuration or of several that are meant to agree."""

    name: str
    classes: tuple[str, ...]
    type: ast.expr

    @property
    def settable(self) -> bool:
        """Whether text can name a value: not a function, nor an object of Megatron's."""
        return bool(str(self))

    def takes(self, value: Any) -> bool:
        """Whether a value is of the field's type."""
        return _takes(self.type, value)

    def __str__(self) -> str:
        """What it takes, in words."""
        return " or ".join(dict.fromkeys(_said(self.type)))


@functools.cache
def fields() -> dict[str, Field]:
    """Every field by name; empty where Megatron-Core is not installed."""
    found: dict[str, Field] = {}
    for name, files in _FILES.items():
        for file in files:
            for field, annotation in _fields(file, _BASES.get(file, name)).items():
                classes = found[field].classes if field in found else ()
                found[field] = Field(field, tuple(dict.fromkeys((*classes, name))), annotation)
    return found


def _root() -> Path | None:
    spec = importlib.util.find_spec("megatron")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(place) / "core").is_dir():
            return Path(place) / "core"
    return None


@functools.cache
def _classes(file: str) -> dict[str, ast.ClassDef]:
    root = _root()
    if root is None or not (root / file).is_file():
        return {}
    tree = ast.parse((root / file).read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def _fields(file: str, name: str) -> dict[str, ast.expr]:
    defined = _classes(file).get(name)
    entries = defined.body if defined else ()
    return {
        entry.target.id: entry.annotation
        for entry in entries
        if isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name) and entry.target.id[0] != "_"
    }


def members(enumeration: str) -> list[str]:
    """The names of an enumeration's members; empty for what is none."""
    defined = _classes(_ENUMERATIONS).get(enumeration)
    if defined is None or not any("Enum" in ast.unparse(base) for base in defined.bases):
        return []
    return [ast.unparse(entry.targets[0]) for entry in defined.body if isinstance(entry, ast.Assign)]


def _parts(type_: ast.expr) -> tuple[str, list[ast.expr]]:
    """``Optional[int]`` -> "Optional", [int]."""
    if not isinstance(type_, ast.Subscript):
        return ast.unparse(type_), []
    inner = type_.slice.elts if isinstance(type_.slice, ast.Tuple) else [type_.slice]
    return ast.unparse(type_.value), list(inner)


def _takes(type_: ast.expr, value: Any) -> bool:
    name, inner = _parts(type_)
    if name == "Optional":
        return value is None or _takes(inner[0], value)
    if name == "Union":
        return any(_takes(one, value) for one in inner)
    if name == "Literal":
        return any(value == choice and type(value) is type(choice) for choice in map(ast.literal_eval, inner))
    if name in ("List", "list"):
        return (
            isinstance(value, list) and all(_takes(inner[0], each) for each in value)
            if inner
            else (isinstance(value, list))
        )
    if name in ("Tuple", "tuple"):
        endless = len(inner) == 2 and ast.unparse(inner[1]) == "..."
        each = [inner[0]] * len(value) if endless and isinstance(value, list) else inner
        return isinstance(value, list) and len(value) == len(each) and all(map(_takes, each, value))
    if name == "torch.dtype":
        return value in DTYPES
    if name == "float":
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if name in _PLAIN:
        return type(value).__name__ == name
    return value in members(name)


def _said(type_: ast.expr) -> list[str]:
    name, inner = _parts(type_)
    if name == "Optional":
        said = _said(inner[0])
        return [*said, "null"] if said else []
    if name == "Union":
        return [said for one in inner for said in _said(one)]
    if name == "Literal":
        return [str(ast.literal_eval(choice)) for choice in inner]
    if name in ("List", "list", "Tuple", "tuple") and inner:
        return ["a list"] if _said(inner[0]) else []
    if name == "torch.dtype":
        return list(DTYPES[:3])
    return [_PLAIN[name]] if name in _PLAIN else members(name)
