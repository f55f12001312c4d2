"""Reward functions by name or dotted path, and what can be wrong with the options. Imports no torch."""

import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from math import isfinite
from typing import Any, Literal, get_args, get_origin, get_type_hints

from megatron_rl.errors import InputError
from megatron_rl.rewards.config import RewardsConfig
from megatron_rl.rewards.sample import Score
from megatron_rl.system.named import find

Reward = Callable[..., Score]
"""``reward(sample, **args)``, a pure function of its arguments."""

BUILTIN = {
    "format": "megatron_rl.rewards.format.format",
    "multiple_choice": "megatron_rl.rewards.answer.multiple_choice",
    "answer_in_format": "megatron_rl.rewards.answer.answer_in_format",
    "length_window": "megatron_rl.rewards.length.length_window",
    "sip_structure": "megatron_rl.rewards.sip.sip_structure",
    "sip_content": "megatron_rl.rewards.sip.sip_content",
    "social_r1": "megatron_rl.rewards.social_r1.social_r1",
}


def resolve(name: str) -> Reward:
    """The function behind a built-in name or a dotted path; ``InputError`` when there is none."""
    otherwise = "the dotted path of a function of your own, such as my_package.my_module.my_reward"
    return find(name, BUILTIN, f"rewards.terms: {name!r}", otherwise)


def check_rewards(config: RewardsConfig) -> list[str]:
    """Every violation, one sentence or two each; empty when there is none. Imports the modules of the rewards."""
    found = []
    if not config.terms:
        found.append("rewards.terms is empty; name at least one reward and its weight, such as {format: 1.0}.")
    elif all(weight == 0 for weight in config.terms.values()):
        found.append("rewards.terms gives every reward the weight 0; at least one must count.")
    for name, weight in config.terms.items():
        if not isfinite(weight):
            found.append(f"rewards.terms.{name} is {weight}; a weight is a finite number.")
        try:
            found += _args_violations(name, resolve(name), config.args.get(name, {}))
        except InputError as error:
            found.append(str(error))
    for name in config.args:
        if name not in config.terms:
            near = get_close_matches(name, config.terms, n=1)
            hint = f"; did you mean {near[0]}?" if near else "; add it there or take its arguments away."
            found.append(f"rewards.args names {name!r}, which is not in rewards.terms{hint}")
    return found


def _args_violations(name: str, function: Reward, args: Mapping[str, Any]) -> list[str]:
    """What ``function(sample, **args)`` would not accept."""
    signature = inspect.signature(function)
    try:
        signature.bind(None, **args)
    except TypeError as error:
        accepted = list(signature.parameters)[1:]
        unknown = next((key for key in args if key not in accepted), "")
        near = get_close_matches(unknown, accepted, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        takes = ", ".join(accepted) if accepted else "no arguments"
        return [f"rewards.args.{name}: {error}; {hint}{name} takes {takes}."]
    try:
        hints = get_type_hints(function)
    except (NameError, TypeError):  # annotations that only a type checker can read
        hints = {}
    return [
        f"rewards.args.{name}.{key} is {value!r}; it must be {_allowed(hints[key])}."
        for key, value in args.items()
        if key in hints and not _fits(value, hints[key])
    ]


def _fits(value: object, hint: Any) -> bool:
    """Whether a value has a plain type or is one of a Literal's; other annotations are not judged."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint) if hint in (bool, str) else True


def _allowed(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(map(str, get_args(hint)))
    return {int: "an integer", float: "a number", bool: "true or false", str: "a text"}[hint]
