"""``megatron-rl check``: everything that is wrong with a recipe on this machine, or what it would run."""

import argparse
import sys

from megatron_rl.commands.recipe import add_recipe, load_checked, print_problems, print_warnings
from megatron_rl.settings.describe import describe
from megatron_rl.settings.load import load
from megatron_rl.system.processes import BAD_INPUT


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_recipe(parser)
    parser.add_argument(
        "--numerics",
        action="store_true",
        help="compute one batch at the recipe's parallel sizes and on one rank, on this machine's CPU, and compare "
        "log-probs, every gradient and one optimiser step; a large model is made smaller",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Returns 0, or 2 when something is wrong; starts nothing. With --numerics: 1 where numbers differ."""
    if options.numerics:
        return _numerics(options)
    if (checked := load_checked(options, sys.stdout)) is None:
        return BAD_INPUT
    config, found = checked
    print(f"{options.recipe}: nothing is wrong. It would run:\n{describe(config)}")
    for what, count in found.notes.items():
        print(f"  note       {what}: {count}")
    print_warnings(found.warnings, sys.stdout)
    return 0


def _numerics(options: argparse.Namespace) -> int:
    from megatron_rl.launch.numerics.report import check_numerics  # torch

    config, problems = load(options.recipe, options.overrides)
    if problems:
        print_problems(options.recipe, problems, sys.stdout)
        return BAD_INPUT
    return check_numerics(options.recipe, config, sys.stdout)
