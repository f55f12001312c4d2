"""The command line, ``megatron-rl COMMAND``: finds the command's module, runs it, and turns its end into an exit code.

Only the chosen command's module is imported, so that every command starts in a fraction of a second.
"""

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import TextIO

from megatron_rl import __version__
from megatron_rl.errors import InputError, Interrupted, RunError, refused
from megatron_rl.system.processes import BAD_INPUT, ERROR_PREFIX, FAILED, program, speak_utf8

COMMANDS = {  # the module of megatron_rl.commands, and what it does
    "train": ("train", "run a recipe: starts, watches and ends every process"),
    "check": ("check", "list what is wrong with a recipe, what it needs, and layouts that fit; --numerics: compare"),
    "plan": (
        "plan",
        "print how weights travel from the trainer to the engines, what it costs, and the proof; needs no weights",
    ),
    "recipes": ("recipes", "list the recipes"),
    "options": ("options", "list the options, their defaults and what they may be"),
    "data": ("data.source", "show what a data file or a data set of the hub holds, check every row, write it again"),
    "data select": (
        "data.select",
        "write the completions of a run that are good enough, as rows to imitate or to compare",
    ),
    "data overlap": ("data.overlap", "say how many questions of a suite stand in data that are trained on"),
    "data generate": ("data.generate", "write generated puzzles to a file, for data.path or sft.data.path"),
    "watch": ("runs.watch", "follow a run from another shell, by its files alone, until it ends"),
    "report": ("runs.report", "write one HTML page about one run or several: curves, rewards, behaviour, samples"),
    "analyze": ("runs.analyze", "what a run's completions say: languages, lengths, stages, signs of reward hacking"),
    "replay": ("runs.replay", "repeat one step of a run from its checkpoint and saved rollouts, and compare"),
    "convert": ("convert_options", "convert checkpoints between Hugging Face and Megatron, verify and inspect them"),
    "evaluate": (
        "evaluation.evaluate",
        "ask a model the questions of suites: accuracy with intervals, every completion",
    ),
    "serve": ("serve", "serve a trained policy with SGLang (OpenAI's API), or a reward model"),
    "engine": (
        "engine",
        "start one SGLang engine for a run, on a machine of its own; the trainer takes it by rollout.sglang.urls",
    ),
}
EPILOG = """\
A recipe is a complete configuration. It is named as `megatron-rl recipes` lists it, or it is a YAML file, or
the dotted path of a function () -> Config of your own. key=value changes one option; a text is taken as it is typed,
any other value as YAML reads it.

examples:
  megatron-rl train quickstart                        watch a small model learn, in minutes, on a laptop
  megatron-rl train quickstart run.steps=20 run.seed=1
  megatron-rl check social_r1.qwen3_4b actor.tensor_parallel=4
  megatron-rl plan quickstart                         how weights travel to the engines, and what it costs
  megatron-rl options rollout                         what can be set, with defaults
  megatron-rl train runs/quickstart/config.yaml       the same run again
  megatron-rl train quickstart rollout.engine=sglang  the same with a real SGLang server (make sglang)
  megatron-rl evaluate runs/quickstart false_belief   how good it is on questions that it has not seen
  megatron-rl report runs/quickstart                  one page about it: curves, rewards, behaviour, samples
  megatron-rl serve runs/quickstart                   what it trained, behind OpenAI's API

A run keeps everything in runs/NAME: metrics, completions with their rewards, checkpoints, the final policy.
Ctrl-C stops it at the end of the step, with a checkpoint, and says how to continue; a second one ends it at once.


Exit codes: 0 done, 1 a process failed, 2 bad input, 75 a machine of several was lost, 128 + number of the signal
that ended it.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, 1 a process failed (of convert verify: a difference), 2 bad input, 128 + signal."""
    _open_standard_streams()
    if arguments is None:
        speak_utf8()
    try:
        try:
            return _run(sys.argv[1:] if arguments is None else arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has gone; every process has been ended
        for stream in (sys.stdout, sys.stderr):
            _say_no_more(stream)
        return 128 + signal.SIGPIPE
    except OSError as error:
        if (found := refused(error)) is None:
            raise
        _say_no_more(sys.stdout)  # which may be on that disk
        print(f"{ERROR_PREFIX}{found}", file=sys.stderr)
        return BAD_INPUT


def _run(arguments: Sequence[str]) -> int:
    if (two := " ".join(arguments[:2])) in COMMANDS:  # a command of two words
        arguments = [two, *arguments[2:]]
    if not arguments:
        _parser("").print_help(sys.stderr)
        return BAD_INPUT
    options = _parsed(arguments)
    try:
        _require_utf8(arguments)
        return int(options.run(options))
    except (InputError, RunError) as error:
        print(f"{ERROR_PREFIX}{error}", file=sys.stderr)
        return FAILED if isinstance(error, RunError) else BAD_INPUT
    except KeyboardInterrupt as interrupt:
        print(f"Interrupted. {interrupt}".rstrip(), file=sys.stderr)
        return 128 + (interrupt.signal if isinstance(interrupt, Interrupted) else signal.SIGINT)


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The options. Further names behind an option, which argparse leaves over, go to where a command takes them."""
    parser = _parser(arguments[0] if arguments else "")
    options, left = parser.parse_known_args(arguments)
    takes = next((name for name in ("names", "overrides") if hasattr(options, name)), None)
    if left and (any(text.startswith("-") for text in left) or takes is None):
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    if takes is not None:
        setattr(options, takes, [*getattr(options, takes), *left, *(getattr(options, "flags", None) or [])])
    return options


def _require_utf8(arguments: Sequence[str]) -> None:
    for argument in arguments:
        if any("\ud800" <= character <= "\udfff" for character in argument):
            written = argument.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            raise InputError(f"{written} is not in UTF-8, as names of files and options must be: rename the file.")


def _parser(chosen: str) -> argparse.ArgumentParser:
    """All commands, with the options of the chosen one: those of some need imports that would slow down the others."""
    parser = argparse.ArgumentParser(
        prog="megatron-rl",
        description="Train language models to reason, by reinforcement learning: a sharded Megatron-Core actor, "
        "rollout engines that get its new weights after every step, and rewards computed on CPUs.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if chosen and not chosen.startswith("-") and chosen not in COMMANDS:
        near = get_close_matches(chosen, COMMANDS, n=1)
        meant = f"; did you mean {near[0]}?" if near else "."
        parser.error(f"there is no command {chosen!r}{meant} {program()} --help lists them.")
    parser.add_argument("--version", action="version", version=f"megatron-rl {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, (module, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        if name == chosen:
            import_module(f"megatron_rl.commands.{module}").add_arguments(command)
    return parser


def _open_standard_streams() -> None:
    """Open what the caller has closed (``2>&-``): else the next file or socket would take its number, and its words."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    sys.stdin = sys.stdin or os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8", closefd=False)


def _say_no_more(stream: TextIO) -> None:
    """Python would complain at its end that it cannot write what is still to be written: let it go nowhere."""
    with contextlib.suppress(OSError, ValueError):  # a stream of another kind, as tests have
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


if __name__ == "__main__":
    sys.exit(main())
