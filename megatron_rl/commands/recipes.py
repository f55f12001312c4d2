"""``megatron-rl recipes``: what can be trained, one line each."""

import argparse

from megatron_rl.settings.recipes import all_recipes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print them; returns 0."""
    known = all_recipes()
    width = max(map(len, known))
    for name, text in known.items():
        print(f"{name:<{width}}  {text}")
    return 0
