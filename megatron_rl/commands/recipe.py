"""The arguments of commands that take a recipe, and what is printed about it."""

import argparse
from collections.abc import Sequence
from typing import TextIO

from megatron_rl.config import Config
from megatron_rl.settings.check import Findings, check
from megatron_rl.settings.load import load


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """RECIPE and key=value."""
    help = "a recipe's name, a .yaml file, or the dotted path of a function () -> Config"
    parser.add_argument("recipe", metavar="RECIPE", help=help)
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="options to change")
    for flag, key, what in (
        ("--nodes", "launch.nodes", "machines that the run takes"),
        ("--rollout-nodes", "launch.rollout_nodes", "of them, how many only generate, beside the others that train"),
    ):
        help = f"{what}: short for {key}=N"
        parser.add_argument(flag, metavar="N", dest="flags", type=f"{key}={{}}".format, action="append", help=help)


def load_checked(options: argparse.Namespace, to: TextIO) -> tuple[Config, Findings] | None:
    """The recipe with its overrides, and what was found; None after all that is wrong has been printed."""
    config, problems = load(options.recipe, options.overrides)
    found = check(config)
    if problems := problems + found.problems:
        print_problems(options.recipe, problems, to)
        return None
    return config, found


def print_problems(recipe: str, problems: Sequence[str], to: TextIO) -> None:
    """All of them, numbered."""
    print(f"{recipe}: {len(problems)} problem{'' if len(problems) == 1 else 's'}", file=to)
    for number, problem in enumerate(problems, 1):
        print(f"{number:3}. {problem}", file=to)


def print_warnings(warnings: Sequence[str], to: TextIO) -> None:
    """One a line."""
    for warning in warnings:
        print(f"warning: {warning}", file=to, flush=True)
