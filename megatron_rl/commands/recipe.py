"""The arguments of commands that take a recipe, and what is printed about it."""

import argparse
from collections.abc import Sequence
from typing import TextIO


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """RECIPE and key=value."""
    help = "a recipe's name, a .yaml file, or the dotted path of a function () -> Config"
    parser.add_argument("recipe", metavar="RECIPE", help=help)
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="options to change")


def print_problems(recipe: str, problems: Sequence[str], to: TextIO) -> None:
    """All of them, numbered."""
    print(f"{recipe}: {len(problems)} problem{'' if len(problems) == 1 else 's'}", file=to)
    for number, problem in enumerate(problems, 1):
        print(f"{number:3}. {problem}", file=to)


def print_warnings(warnings: Sequence[str], to: TextIO) -> None:
    """One a line."""
    for warning in warnings:
        print(f"warning: {warning}", file=to, flush=True)
