"""``megatron-rl train``: check a recipe, then run it."""

import argparse
import sys
from functools import partial

from megatron_rl.commands.recipe import add_recipe, load_checked, print_warnings
from megatron_rl.errors import InputError
from megatron_rl.launch.job import follow, launch
from megatron_rl.launch.nodes import given
from megatron_rl.launch.seeds import follow_seeds, launch_seeds, read_seeds
from megatron_rl.settings.load import load
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
    if seeds and (given_seed := next((word for word in options.overrides if word.startswith("run.seed=")), "")):
        raise InputError(f"{given_seed} and --seeds {options.seeds} both say which seeds: leave one of them out.")
    config, problems = load(options.recipe, options.overrides)
    nodes = given(config.launch)
    if nodes.index:  # the first node checks, and says what is wrong
        if problems:
            return BAD_INPUT
        return follow_seeds(config, seeds, nodes) if seeds else follow(config, nodes)
    print(f"Checking {options.recipe} …", flush=True)
    if (checked := load_checked(options, sys.stderr)) is None:
        return BAD_INPUT
    config, found = checked
    print_warnings(found.warnings, sys.stderr)
    return launch_seeds(config, seeds, partial(launch, nodes=nodes)) if seeds else launch(config, nodes)
