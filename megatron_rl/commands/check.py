"""``megatron-rl check``: everything that is wrong with a recipe on this machine, or what it would run."""

import argparse
import sys

from megatron_rl.commands.recipe import add_recipe, print_problems, print_warnings
from megatron_rl.settings.check import check
from megatron_rl.settings.describe import describe
from megatron_rl.settings.load import load
from megatron_rl.system.processes import BAD_INPUT


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_recipe(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Returns 0, or 2 when something is wrong; starts nothing."""
    config, problems = load(options.recipe, options.overrides)
    found = check(config)
    if problems := problems + found.problems:
        print_problems(options.recipe, problems, sys.stdout)
        return BAD_INPUT
    print(f"{options.recipe}: nothing is wrong. It would run:\n{describe(config)}")
    for what, count in found.notes.items():
        print(f"  note       {what}: {count}")
    print_warnings(found.warnings, sys.stdout)
    return 0
