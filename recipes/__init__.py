"""Recipes: functions that return a complete configuration, named ``module.function``.

A recipe is a public function of a module of this package whose return type is ``Config``; ``quickstart`` is short for
``quickstart.quickstart``. Recipes import no torch.
"""

import inspect
import pkgutil
from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module

from megatron_rl.config import Config
from megatron_rl.errors import InputError


def find(name: str) -> Callable[[], Config]:
    """The function of a recipe; raises InputError with the nearest name when there is none."""
    known = _functions()
    if name not in known:
        near = get_close_matches(name, known, n=1, cutoff=0.4)
        raise InputError(
            f"There is no recipe {name!r}{f'; did you mean {near[0]}?' if near else '.'} Recipes are {', '.join(known)}"
            "; a YAML file's name must end in .yaml or .yml."
        )
    return known[name]


def all_recipes() -> dict[str, str]:
    """Every recipe with the first line of its docstring."""
    return {name: inspect.getdoc(function).splitlines()[0] for name, function in _functions().items()}  # type: ignore[union-attr]


def _functions() -> dict[str, Callable[[], Config]]:
    found: dict[str, Callable[[], Config]] = {}
    for info in pkgutil.iter_modules(__path__):
        module = import_module(f"{__name__}.{info.name}")
        for name, function in inspect.getmembers(module, inspect.isfunction):
            own = function.__module__ == module.__name__ and not name.startswith("_")
            if own and function.__annotations__.get("return") is Config:
                found[info.name if name == info.name else f"{info.name}.{name}"] = function
    return found
