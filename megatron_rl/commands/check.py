"""``megatron-rl check``: everything that is wrong with a recipe on this machine, or what it would run."""

import argparse
import sys

from megatron_rl.commands.recipe import add_recipe, load_checked, print_warnings
from megatron_rl.settings.describe import describe
from megatron_rl.system.processes import BAD_INPUT


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_recipe(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Returns 0, or 2 when something is wrong; starts nothing."""
    if (checked := load_checked(options, sys.stdout)) is None:
        return BAD_INPUT
    config, found = checked
    print(f"{options.recipe}: nothing is wrong. It would run:\n{describe(config)}")
    for what, count in found.notes.items():
        print(f"  note       {what}: {count}")
    print_warnings(found.warnings, sys.stdout)
    return 0
