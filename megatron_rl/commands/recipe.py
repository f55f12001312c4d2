"""The arguments of commands that take a recipe, and what is printed about it."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TextIO

from megatron_rl.config import Config
from megatron_rl.errors import InputError
from megatron_rl.settings.check import Findings, check
from megatron_rl.settings.load import load


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """RECIPE and key=value."""
    help = "a recipe's name, a .yaml file, or the dotted path of a function () -> Config"
    parser.add_argument("recipe", metavar="RECIPE", help=help)
    parser.add_argument("overrides", metavar="key=value", nargs="*", default=[], help="options to change")
    for flag, key, what in (
        ("--nodes", "launch.nodes", "machines that the run takes"),
        ("--rollout-nodes", "launch.rollout_nodes", "of them, how many only generate, beside the others that train"),
    ):
        help = f"{what}: short for {key}=N"
        parser.add_argument(
            flag, metavar="N", dest="flags", type=_counted(key, flag == "--nodes"), action="append", help=help
        )


def _counted(key: str, some: bool) -> Callable[[str], str]:
    """A flag's number as key=value, as which it is checked; ``some``: 0, which stands for as given, is no answer."""

    def override(given: str) -> str:
        if some and given.strip() == "0":
            raise argparse.ArgumentTypeError("0 machines run nothing: give 1 or more, or leave it out")
        return f"{key}={given}"

    return override


def flagged(options: argparse.Namespace, key: str) -> int | None:
    """The number that a flag gives a key; None without the flag. Raises InputError where key=N says another."""
    flags = [text.partition("=") for text in getattr(options, "flags", None) or []]
    found = [value for name, _, value in flags if name == key]
    said = [text for text in options.overrides if text.partition("=")[0].strip() == key]
    if found and (other := [text for text in said if text.partition("=")[2].strip() != found[-1].strip()]):
        flag = "--" + key.partition(".")[2].replace("_", "-")
        raise InputError(
            f"{flag} {found[-1]} and {other[0]} contradict each other: {flag} is short for {key}=N; give one."
        )
    return int(found[-1]) if found and found[-1].strip().isdecimal() else None


def load_checked(options: argparse.Namespace, to: TextIO) -> tuple[Config, Findings] | None:
    """The recipe with its overrides, and what was found; None after all that is wrong has been printed."""
    config, found = checked(options)
    if found.problems:
        print_problems(options.recipe, found.problems, to)
        return None
    return config, found


def checked(options: argparse.Namespace, known: dict[str, Any] | None = None) -> tuple[Config, Findings]:
    """The recipe with its overrides, and what was found; ``known`` as for ``check``."""
    for key in ("launch.nodes", "launch.rollout_nodes"):
        flagged(options, key)
    config, problems = load(options.recipe, options.overrides)
    found = check(config, known=known)
    return config, replace(found, problems=problems + found.problems)


def print_problems(recipe: str, problems: Sequence[str], to: TextIO) -> None:
    """All of them, numbered."""
    print(f"{recipe}: {len(problems)} problem{'' if len(problems) == 1 else 's'}", file=to)
    for number, problem in enumerate(problems, 1):
        print(f"{number:3}. {problem}", file=to)


def print_warnings(warnings: Sequence[str], to: TextIO) -> None:
    """One a line."""
    for warning in warnings:
        print(f"warning: {warning}", file=to, flush=True)
