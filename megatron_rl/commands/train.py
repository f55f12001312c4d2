"""``megatron-rl train``: check a recipe, then run it."""

import argparse
import sys

from megatron_rl.commands.recipe import add_recipe, load_checked, print_warnings
from megatron_rl.launch.job import follow, launch
from megatron_rl.launch.nodes import given
from megatron_rl.settings.load import load
from megatron_rl.system.processes import BAD_INPUT


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_recipe(parser)
    parser.set_defaults(run=train)


def train(options: argparse.Namespace) -> int:
    """Returns the run's exit code; 2 when something is wrong with the recipe, and then nothing was started."""
    config, problems = load(options.recipe, options.overrides)
    nodes = given(config.launch)
    if nodes.index:  # the first node checks, and says what is wrong
        return follow(config, nodes) if not problems else BAD_INPUT
    print(f"Checking {options.recipe} …", flush=True)
    if (checked := load_checked(options, sys.stderr)) is None:
        return BAD_INPUT
    config, found = checked
    print_warnings(found.warnings, sys.stderr)
    return launch(config, nodes)
