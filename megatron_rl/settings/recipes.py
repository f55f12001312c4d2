"""Recipes by name: those of the package ``recipes``, or any function () -> Config by its dotted path."""

import inspect
import pkgutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from megatron_rl.config import Config
from megatron_rl.errors import InputError
from megatron_rl.system import named
from megatron_rl.system.processes import program


def recipe(name: str) -> Config:
    """What a recipe returns. Raises InputError, with the nearest name when there is no such recipe."""
    otherwise = "the dotted path of a function () -> Config; a YAML file's name ends in .yaml or .yml"
    said = f"The recipe {name!r}"
    known = {known: f"{function.__module__}.{function.__name__}" for known, function in _functions().items()}
    if name not in known and (Path(name) / "config.yaml").is_file():
        raise InputError(f"{name} is a run's folder: give {Path(name) / 'config.yaml'}.")
    module = name.removeprefix("recipes.")
    if name not in known and (inside := [other for other in known if other.startswith(f"{module}.")]):
        raise InputError(f"{said} stands for several: name one of {', '.join(inside)}.")
    listed = f"`{program()} recipes` lists them"
    config = named.call(said, named.find(name, known, said, otherwise, listed))
    if not isinstance(config, Config):
        raise InputError(f"{said} returns a {type(config).__name__}; a recipe returns a megatron_rl.config.Config.")
    return config


def all_recipes() -> dict[str, str]:
    """Every recipe of the package with the first line of its docstring."""
    return {name: (inspect.getdoc(function) or "").partition("\n")[0] for name, function in _functions().items()}


def _functions() -> dict[str, Callable[[], Config]]:
    import recipes

    found: dict[str, Callable[[], Config]] = {}
    for info in pkgutil.iter_modules(recipes.__path__):
        if info.name.startswith("_"):  # what recipes share
            continue
        module = import_module(f"recipes.{info.name}")
        for name, function in inspect.getmembers(module, inspect.isfunction):
            own = function.__module__ == module.__name__ and not name.startswith("_")
            if own and function.__annotations__.get("return") is Config:
                found[info.name if name == info.name else f"{info.name}.{name}"] = function
    return found
