"""``megatron-rl train``: check a recipe, then run it."""

import argparse
import sys

from megatron_rl.commands.recipe import add_recipe, load_checked, print_warnings
from megatron_rl.launch.job import launch
from megatron_rl.launch.seeds import launch_seeds, read_seeds
from megatron_rl.system.processes import BAD_INPUT


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_recipe(parser)
    parser.add_argument(
        "--seeds",
        metavar="SEEDS",
        help="0:5 (0 to 4) or 1,3,7: a run for each, NAME-seed0 …, one after the other; those that are there go on",
    )
    parser.set_defaults(run=train)


def train(options: argparse.Namespace) -> int:
    """Returns the run's exit code; 2 when something is wrong with the recipe, and then nothing was started."""
    seeds = read_seeds(options.seeds) if options.seeds else []
    print(f"Checking {options.recipe} …", flush=True)
    if (checked := load_checked(options, sys.stderr)) is None:
        return BAD_INPUT
    config, found = checked
    print_warnings(found.warnings, sys.stderr)
    return launch_seeds(config, seeds) if seeds else launch(config)
