"""``megatron-rl train``: check a recipe, then run it."""

import argparse
import sys

from megatron_rl.commands.recipe import add_recipe, print_problems, print_warnings
from megatron_rl.launch.job import launch
from megatron_rl.settings.check import check
from megatron_rl.settings.load import load
from megatron_rl.system.processes import BAD_INPUT


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_recipe(parser)
    parser.set_defaults(run=train)


def train(options: argparse.Namespace) -> int:
    """Returns the run's exit code; 2 when something is wrong with the recipe, and then nothing was started."""
    config, problems = load(options.recipe, options.overrides)
    found = check(config)
    if problems := problems + found.problems:
        print_problems(options.recipe, problems, sys.stderr)
        return BAD_INPUT
    print_warnings(found.warnings, sys.stderr)
    return launch(config)
