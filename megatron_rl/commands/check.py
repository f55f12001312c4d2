"""``megatron-rl check``: everything that is wrong with a recipe, what it would run, and what that will need."""

import argparse
import contextlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron_rl.algorithms.registry import asked_of
from megatron_rl.commands.recipe import add_recipe, checked, flagged, print_problems, print_warnings
from megatron_rl.config import Config
from megatron_rl.errors import InputError
from megatron_rl.launch.check import resolved
from megatron_rl.resharding.families.architecture import read_architecture
from megatron_rl.resharding.folders.hf import read_hf_config
from megatron_rl.settings.check import Findings, askable, check
from megatron_rl.settings.contents import ask_megatron
from megatron_rl.settings.describe import describe
from megatron_rl.settings.footprint import read_config
from megatron_rl.settings.foresight.forecast import Forecast, foresee
from megatron_rl.settings.foresight.hardware import GPUS, Hardware, named, this_machine
from megatron_rl.settings.foresight.precision import advice, mismatch_on
from megatron_rl.settings.foresight.rules import check_hardware
from megatron_rl.settings.foresight.suggest import (
    NEEDS_GPUS,
    NEEDS_RL,
    TIMES,
    Options,
    Suggestion,
    enough_nodes,
    fits_asleep,
    suggest,
)
from megatron_rl.settings.load import load
from megatron_rl.settings.model import check_critic
from megatron_rl.system import machine
from megatron_rl.system.files import read_json
from megatron_rl.system.processes import BAD_INPUT

_MOST_GPUS = 128  # of a node

EXAMPLES = """\
examples:
  megatron-rl check quickstart
  megatron-rl check social_r1.qwen3_4b --gpu h100 --gpus 8 --model Qwen3-4B/config.json
  megatron-rl check my.recipe launch.nodes=4 --gpu h200 --gpus 8 --suggest --json
"""


class _Once(argparse.Action):
    """A flag that is given once: of two answers none is silently the right one."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, flag: str | None = None
    ) -> None:
        if getattr(namespace, self.dest) is not None:
            parser.error(f"{flag} is given twice, {getattr(namespace, self.dest)} and {values}: give one.")
        setattr(namespace, self.dest, values)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_recipe(parser)
    parser.epilog, parser.formatter_class = EXAMPLES, argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--gpu", metavar="NAME", action=_Once, help=f"answer for machines elsewhere: {', '.join(GPUS)} or cpu"
    )
    parser.add_argument("--gpus", metavar="N", type=int, action=_Once, help="with --gpu: GPUs of each node (8)")
    parser.add_argument(
        "--model", metavar="FILE", action=_Once, help="the config.json of a model whose folder is not here"
    )
    parser.add_argument(
        "--tokens",
        metavar="N",
        type=float,
        action=_Once,
        help="mean length of a completion (half of the longest)",
    )
    parser.add_argument("--suggest", action="store_true", help="list layouts that fit, the fastest first")
    parser.add_argument("--json", action="store_true", help="print plain data")
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
        if options.gpu or options.suggest or options.json:
            raise InputError("--numerics computes on this machine's CPU: give it without --gpu, --suggest and --json.")
        return _numerics(options)
    for flag, given in (("--gpu", options.gpu), ("--model", options.model)):
        if given == "":
            raise InputError(f"{flag} is empty: name one, or leave it out.")
    if options.gpus is not None and (not options.gpu or options.gpus < 1):
        raise InputError(f"--gpus {options.gpus} goes with --gpu NAME and is 1 or more.")
    if options.gpus is not None and options.gpus > _MOST_GPUS:
        raise InputError(
            f"--gpus {options.gpus} is the number of each node: {_MOST_GPUS} at most; --nodes N takes more."
        )
    if options.tokens is not None and not options.tokens >= 1:
        raise InputError(f"--tokens {options.tokens:g} is the mean length of a completion: give 1 or more.")
    if options.suggest and (options.gpu == "cpu" or not (options.gpu or machine.gpus())):
        raise InputError(NEEDS_GPUS)
    if not options.gpu:
        return _run(options, None)
    on = named(options.gpu, gpus=options.gpus or 8)
    with machine.standing_for((on.memory,) * on.gpus):
        return _run(options, on)


def _run(options: argparse.Namespace, on: Hardware | None) -> int:
    known = _config_json(options.model) if options.model is not None else None
    config, found = checked(options, known)
    nodes = max(resolved(config.launch).nodes, 1)
    on = this_machine(nodes) if on is None else named(options.gpu, nodes, on.gpus)
    found.problems += [said for said in check_hardware(config, on) if said not in found.problems]
    found.warnings += [said for said in mismatch_on(config, on) if said not in found.warnings]
    forecast, suggestions, why_none = _foreseen(options, config, known, on, found)
    if options.json:
        data = _data(options, found, forecast, suggestions) | {"why_none": why_none or None}
        data |= _precision(config, known, on) if forecast else {"precision": None}
        print(json.dumps(data, indent=2))
        return BAD_INPUT if found.problems else 0
    if found.problems:
        print_problems(options.recipe, found.problems, sys.stdout)
    if forecast is not None:
        if found.problems:
            print("Apart from that it would need:")
        else:
            print(f"{options.recipe}: nothing is wrong. It would run:\n{describe(config, known, options.model or '')}")
        for name, text in (_precision(config, known, on) | forecast.lines()).items():
            print(f"  {name:<11}{text}")
        for what, count in found.notes.items():
            print(f"  note       {what}: {count}")
        print_warnings(found.warnings, sys.stdout)
    if suggestions is not None:
        print("\n".join(each.line() for each in suggestions) or why_none)
    return BAD_INPUT if found.problems else 0


def _precision(config: Config, known: dict[str, Any] | None, on: Hardware) -> dict[str, str]:
    return {"precision": advice(config, read_architecture(known or read_config(config.model)), on)}


def _foreseen(
    options: argparse.Namespace, config: Config, known: dict[str, Any] | None, on: Hardware, found: Findings
) -> tuple[Forecast | None, list[Suggestion] | None, str]:
    """The forecast of a recipe without problems that it depends on, and suggestions where they are asked for.

    Last, why there are none."""
    hf_config, why_none = dict[str, Any](), ""
    with contextlib.suppress(InputError):  # which check has found
        hf_config = known or read_config(config.model)
    forecast: Forecast | None = None
    suggestions: list[Suggestion] | None = None
    if hf_config and found.aside.issuperset(found.problems):
        forecast = foresee(config, hf_config, on, options.tokens, prompt=found.prompt, **_beside(config, hf_config))
        found.warnings += forecast.warnings()
        if (longest := config.rollout.max_new_tokens) < (options.tokens or 0):
            found.warnings.append(
                f"--tokens {options.tokens:.0f} counts as {longest}, the longest that a completion may get "
                "(rollout.max_new_tokens)."
            )
    if options.suggest and not config.run.steps:
        suggestions, why_none = [], NEEDS_RL
    elif options.suggest and _trained(hf_config):

        def problems(changed: Config) -> list[str]:
            return check(changed, contents=False, known=known).problems + check_hardware(changed, on)

        def refused(layouts: Sequence[Options]) -> list[list[str]]:
            return ask_megatron(config, hf_config, layouts) if askable(config) else [[] for _ in layouts]

        serving = flagged(options, "launch.rollout_nodes")
        suggestions, against = suggest(
            config, hf_config, on, problems, refused, options.tokens, serving, found.problems, found.prompt
        )
        why_none = "" if suggestions else _none(options, config, hf_config, on, against)
    return forecast, suggestions, why_none


def _trained(hf_config: Mapping[str, Any]) -> bool:
    """Whether it is known, and of a model that the actor trains: else check has found that."""
    with contextlib.suppress(InputError):
        return bool(hf_config and read_architecture(hf_config))
    return False


def _none(
    options: argparse.Namespace, config: Config, hf_config: Mapping[str, Any], on: Hardware, against: list[str]
) -> str:
    """Why there is no suggestion."""
    if against:
        return f"Layouts fit on {on.nodes} x {on.gpus} {on.name}, but none without a problem. Of one: {against[0]}"
    serving = flagged(options, "launch.rollout_nodes")
    said = f"No layout fits on {on.nodes} x {on.gpus} {on.name}."
    if fits_asleep(config, hf_config, on, options.tokens, serving):
        return f"{said} With actor.asleep=true there are some: add it, and ask again."
    nodes = enough_nodes(config, hf_config, on, options.tokens, serving)
    for fewer in (on.nodes * times for times in TIMES if on.nodes * times < (nodes or TIMES[-1] * on.nodes + 1)):
        if fits_asleep(config, hf_config, replace(on, nodes=fewer), options.tokens, serving):
            more = f"; without it on {nodes}" if nodes else ""
            return (
                f"{said} On {fewer} nodes there are some with actor.asleep=true{more}: --nodes {fewer}, and ask again."
            )
    if nodes:
        return f"{said} On {nodes} nodes there are some: --nodes {nodes}."
    return f"{said} Even {TIMES[-1] * on.nodes} nodes would not do."


def _beside(config: Config, hf_config: dict[str, Any]) -> dict[str, Mapping[str, Any] | None]:
    """The config.json of models beside the policy."""
    needs = asked_of(config.algorithm).needs if config.run.steps else frozenset()
    critic = check_critic(config, hf_config)[0] if "value" in needs else None
    teacher = read_hf_config(config.algorithm.teacher) if "teacher" in needs else None
    return {"critic": critic, "teacher": teacher}


def _config_json(file: str) -> dict[str, Any]:
    if Path(file).is_dir():
        file = str(Path(file) / "config.json")
    content = read_json(Path(file), "--model takes the config.json of a model")
    if not isinstance(content.get("model_type"), str):
        raise InputError(f"--model {file} has no model_type: it is not the config.json of a model.")
    return content


def _data(
    options: argparse.Namespace, found: Findings, forecast: Forecast | None, suggestions: list[Suggestion] | None
) -> dict[str, Any]:
    """What ``--json`` prints: docs/planning.md."""
    listed = [{"options": each.options, "line": each.line()} | each.forecast.data() for each in suggestions or []]
    return {
        "recipe": options.recipe,
        "overrides": options.overrides,
        "problems": found.problems,
        "warnings": found.warnings,
        "notes": found.notes,
        "forecast": forecast.data() if forecast else None,
        "suggestions": listed if suggestions is not None else None,
    }


def _numerics(options: argparse.Namespace) -> int:
    from megatron_rl.launch.numerics.report import check_numerics  # torch

    config, problems = load(options.recipe, options.overrides)
    if problems:
        print_problems(options.recipe, problems, sys.stdout)
        return BAD_INPUT
    return check_numerics(options.recipe, config, sys.stdout)
