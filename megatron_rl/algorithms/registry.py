"""Algorithms by name. Imports no torch before one is made."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

from megatron_rl.algorithms.config import AlgorithmConfig
from megatron_rl.algorithms.published import PUBLISHED, settled
from megatron_rl.errors import InputError
from megatron_rl.system import named

if TYPE_CHECKING:
    from megatron_rl.algorithms.algorithm import Algorithm


def find_algorithm(name: str) -> Callable[[AlgorithmConfig], "Algorithm"]:
    """The class of an algorithm: one of ``PUBLISHED`` or a dotted path. Raises InputError when there is none."""
    if name in PUBLISHED:  # whose classes bring torch along, which a check can do without
        return partial(_published, PUBLISHED[name].path)
    known = {name: found.path for name, found in PUBLISHED.items()}
    otherwise = "the dotted path of a class (AlgorithmConfig) -> Algorithm"
    return named.find(name, known, f"algorithm.name={name!r}", otherwise)


@dataclass(frozen=True)
class Asked:
    """What an algorithm asks of the rest of a run."""

    grouped: bool  # two or more completions of a prompt
    needs: frozenset[str]  # models beside the policy: "value", "teacher"


def asked(config: AlgorithmConfig) -> Asked:
    """What the algorithm of a configuration asks, which one of the user's is made for. Raises InputError as that does.

    One of the user's is grouped if its attribute ``grouped`` says so.
    """
    if found := PUBLISHED.get(config.name):
        return Asked(found.grouped, found.needs)
    algorithm = make_algorithm(config)
    return Asked(bool(getattr(algorithm, "grouped", False)), frozenset(algorithm.needs) & {"value", "teacher"})


def asked_of(config: AlgorithmConfig) -> Asked:
    """The same for whoever checks something else: nothing, of an algorithm that cannot be made."""
    try:
        return asked(config)
    except InputError:
        return Asked(False, frozenset())


def make_algorithm(config: AlgorithmConfig) -> "Algorithm":
    """The algorithm that ``algorithm.name`` names, made of its settled options.

    Raises InputError for an unknown one, and with what a user's class raises.
    """
    said, find = f"algorithm.name={config.name!r}", find_algorithm(config.name)
    algorithm = named.call(said, find, settled(config))
    if missing := [part for part in ("needs", "credit", "loss") if not hasattr(algorithm, part)]:
        raise InputError(f"{said} makes a {type(algorithm).__name__} without {', '.join(missing)}.")
    return algorithm


def _published(path: str, config: AlgorithmConfig) -> "Algorithm":
    module, _, name = path.rpartition(".")
    made: Algorithm = getattr(import_module(module), name)(config)
    return made
