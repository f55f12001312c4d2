"""The command line: megatron-rl train | check | plan | recipes | options | convert | serve | engine."""

import argparse
import signal
import sys
from collections.abc import Sequence
from typing import TextIO

from megatron_rl import __version__
from megatron_rl.errors import InputError, full_disk
from megatron_rl.system.processes import BAD_INPUT, ERROR_PREFIX

EPILOG = """\
A recipe is a complete configuration. It is named as `megatron-rl recipes` lists it, or it is a YAML file.
key=value changes one option; a value is written as in YAML.

examples:
  megatron-rl train quickstart                        watch a small model learn, in minutes, on a laptop
  megatron-rl train quickstart run.steps=20 run.seed=1
  megatron-rl check social_r1.qwen3_4b actor.tensor_parallel=4
  megatron-rl plan quickstart                         how weights travel to the engines, and what it costs
  megatron-rl options rollout                         what can be set, with defaults
  megatron-rl train runs/quickstart/config.yaml       the same run again
  megatron-rl train quickstart rollout.engine=sglang  the same with a real SGLang server (make sglang)
  megatron-rl serve runs/quickstart                   what it trained, behind OpenAI's API

A run keeps everything in runs/NAME: metrics, completions with their rewards, checkpoints, the final policy.
Ctrl-C stops it; the same command continues it from the last checkpoint where the recipe has run.resume=auto.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, 1 a process failed, 2 bad input, 128 + signal."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser(arguments[0] if arguments else "").parse_args(arguments)
    try:
        return int(options.run(options))
    except InputError as error:
        said = error
    except BrokenPipeError:  # whoever read our output has gone; every process has been ended
        sys.stderr.close()
        return 1
    except OSError as error:
        if (full := full_disk(error)) is None:
            raise
        said = full
    except KeyboardInterrupt as interrupt:
        print(f"Interrupted. {interrupt}".rstrip(), file=sys.stderr)
        return 128 + signal.SIGINT
    print(f"{ERROR_PREFIX}{said}", file=sys.stderr)
    return BAD_INPUT


def _parser(chosen: str) -> argparse.ArgumentParser:
    """All commands, with the options of the chosen one: those of some need imports that would slow down the others."""
    parser = argparse.ArgumentParser(
        prog="megatron-rl",
        description="Train language models to reason, by reinforcement learning: a sharded Megatron-Core actor, "
        "rollout engines that get its new weights after every step, and rewards computed on CPUs.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"megatron-rl {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, run, text in (
        ("train", _train, "run a recipe: starts, watches and ends every process"),
        ("check", _check, "list everything that is wrong with a recipe on this machine; starts nothing"),
    ):
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        command.add_argument("recipe", metavar="RECIPE", help="a recipe's name, or a .yaml file")
        command.add_argument("overrides", metavar="key=value", nargs="*", help="options to change")
        command.set_defaults(run=run)
    text = "print how weights travel from the trainer to the engines, what it costs, and the proof; needs no weights"
    plan = commands.add_parser("plan", help=text, description=f"{text[0].upper()}{text[1:]}.")
    if chosen == "plan":
        from megatron_rl.commands.plan import add_arguments

        add_arguments(plan)
    recipes = commands.add_parser("recipes", help="list the recipes", description="List the recipes.")
    recipes.set_defaults(run=_recipes)
    listing = commands.add_parser(
        "options", help="list the options and their defaults", description="List the options."
    )
    listing.add_argument("group", nargs="?", default="", help="only those that start so: actor, run.save …")
    listing.set_defaults(run=_options)
    convert = commands.add_parser(
        "convert",
        help="convert checkpoints between Hugging Face and Megatron, compare and list them",
        description="Convert checkpoints between Hugging Face folders and Megatron's torch_dist, by streaming.",
    )
    if chosen == "convert":
        from megatron_rl.commands.convert_options import add_commands

        add_commands(convert)
    text = "serve a trained policy with SGLang: OpenAI's API"
    serving = commands.add_parser("serve", help=text, description=f"{text[0].upper()}{text[1:]}.")
    if chosen == "serve":
        from megatron_rl.commands import serve

        serve.add_arguments(serving)
    text = "start one SGLang engine for a run, on a machine of its own; the trainer takes it by rollout.sglang.urls"
    serving = commands.add_parser("engine", help=text, description=f"{text[0].upper()}{text[1:]}.")
    if chosen == "engine":
        from megatron_rl.commands import engine

        engine.add_arguments(serving)
    return parser


def _train(options: argparse.Namespace) -> int:
    from megatron_rl.launch.job import launch
    from megatron_rl.settings.check import check
    from megatron_rl.settings.load import load

    config, problems = load(options.recipe, options.overrides)
    if problems := problems + check(config):
        _print_problems(options.recipe, problems, sys.stderr)
        return BAD_INPUT
    return launch(config)


def _check(options: argparse.Namespace) -> int:
    from megatron_rl.settings.check import check
    from megatron_rl.settings.describe import describe
    from megatron_rl.settings.load import load

    config, problems = load(options.recipe, options.overrides)
    notes: dict[str, int] = {}
    if problems := problems + check(config, notes=notes):
        _print_problems(options.recipe, problems, sys.stdout)
        return BAD_INPUT
    print(f"{options.recipe}: nothing is wrong. It would run:\n{describe(config, notes)}")
    return 0


def _print_problems(recipe: str, problems: Sequence[str], to: TextIO) -> None:
    print(f"{recipe}: {len(problems)} problem{'s' if len(problems) > 1 else ''}", file=to)
    for number, problem in enumerate(problems, 1):
        print(f"{number:3}. {problem}", file=to)


def _recipes(options: argparse.Namespace) -> int:
    from recipes import all_recipes

    known = all_recipes()
    width = max(map(len, known))
    for name, text in known.items():
        print(f"{name:<{width}}  {text}")
    return 0


def _options(options: argparse.Namespace) -> int:
    from megatron_rl.settings.load import documented

    lines = [line for line in documented() if line.key.startswith(options.group)]
    if not lines:
        raise InputError(f"No option starts with {options.group!r}; `megatron-rl options` lists all.")
    width = max(len(f"{line.key}={line.default}") for line in lines)
    for line in lines:
        print(f"{f'{line.key}={line.default}':<{width}}  {line.text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
