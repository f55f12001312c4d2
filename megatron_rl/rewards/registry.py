"""Reward functions by name or dotted path, and what can be wrong with the options. Imports no torch."""

import inspect
import pickle
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import partial
from math import isfinite
from typing import Any, Literal, get_args, get_origin, get_type_hints

from megatron_rl.data.task import Report
from megatron_rl.errors import InputError
from megatron_rl.rewards.config import RewardsConfig
from megatron_rl.system.named import find

Score = dict[str, float]
"""Named components; the key ``score`` is the term's value and is required."""
Reward = Callable[..., Score | float]
"""``reward(sample, **args)``: a plain function, called in a worker process for every completion with its ``Sample`` and
the arguments of ``rewards.args``.

It returns a number, or numbers by name with the key ``score``: the score is weighed by ``rewards.terms`` and added to
the completion's reward, and the mean of every number is a metric, ``reward/NAME/KEY``. Numbers are finite; booleans and
scalars of NumPy and torch are numbers. Anything else, and whatever it raises, ends the run. One call takes at most
``rewards.deadline`` seconds, a worker's first at most ``rewards.first_deadline``: the worker is killed then, and the
completion's reward is ``rewards.deadline_score``.

The same sample must always get the same score: no state that one call leaves to the next but what it has loaded.
"""

BUILTIN = {
    "format": "megatron_rl.rewards.terms.format.format",
    "multiple_choice": "megatron_rl.rewards.terms.answer.multiple_choice",
    "answer_in_format": "megatron_rl.rewards.terms.answer.answer_in_format",
    "exact_answer": "megatron_rl.rewards.terms.exact_answer.exact_answer",
    "length_window": "megatron_rl.rewards.terms.length.length_window",
    "reward_model": "megatron_rl.rewards.terms.reward_model.reward_model",
    "sip_structure": "megatron_rl.rewards.terms.sip.sip_structure",
    "sip_content": "megatron_rl.rewards.terms.sip.sip_content",
    "reasoning_gym": "megatron_rl.rewards.terms.reasoning_gym.reasoning_gym",
    "temporal_clue": "megatron_rl.rewards.terms.temporal_clue.temporal_clue",
    "social_r1": "megatron_rl.rewards.terms.social_r1.social_r1",
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
            found += _reward_violations(name, resolve(name), config.args.get(name, {}))
        except InputError as error:
            found.append(str(error))
    if config.overlong_factor != RewardsConfig().overlong_factor and not config.overlong_buffer:
        found.append(
            f"rewards.overlong_factor={config.overlong_factor} does nothing without rewards.overlong_buffer: set that "
            "to the number of tokens below rollout.max_new_tokens over which the reward falls."
        )
    for name in config.args:
        if name not in config.terms:
            near = get_close_matches(name, config.terms, n=1)
            hint = f"; did you mean {near[0]}?" if near else "; add it there or take its arguments away."
            found.append(f"rewards.args names {name!r}, which is not in rewards.terms{hint}")
    return found


def check_report(report: Report) -> list[str]:
    """Why the workers could not call a task's report; empty when they can."""
    function = report.func if isinstance(report, partial) else report
    name = getattr(function, "__qualname__", type(function).__name__)
    if inspect.ismethod(function):
        what = "is a method, with which all the data would travel"
    elif getattr(function, "__module__", "__main__") == "__main__":
        what = "is in no module that they can import"
    else:
        try:
            pickle.dumps(report)
            return []
        except Exception as error:  # pickle.PicklingError, AttributeError, TypeError: whatever it holds
            what = f"cannot be sent to them ({error})"
    return [
        f"The report of the task, {name}, is called in the reward workers, but {what}: make it a function of the "
        "task's module, def report(sample: Sample) -> dict[str, float]."
    ]


def _reward_violations(name: str, function: Reward, args: Mapping[str, Any]) -> list[str]:
    """What ``function(sample, **args)`` would not accept, and a function that no plain call runs."""
    if inspect.iscoroutinefunction(inspect.unwrap(function)):
        return [f"rewards.terms names {name!r}, which is asynchronous (async def); make it a plain function."]
    try:
        signature = inspect.signature(function)
    except ValueError:  # some functions in C do not tell
        return []
    try:
        signature.bind(None, **args)
    except TypeError as error:
        accepted = list(signature.parameters)[1:]
        unknown = next((key for key in args if key not in accepted), None)
        if unknown is None:
            call = ", ".join(["sample", *(f"{key}={value!r}" for key, value in args.items())])
            return [
                f"rewards.terms names {name!r}, called as {name.rpartition('.')[2]}({call}), but: {error}. A reward "
                f"takes one Sample (megatron_rl.data.task) and what rewards.args.{name} gives."
            ]
        near = get_close_matches(unknown, accepted, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        takes = ", ".join(accepted) if accepted else "no arguments"
        return [f"rewards.args.{name}: {error}; {hint}{name} takes {takes}."]
    try:
        hints = get_type_hints(function)
    except Exception:  # annotations that only a type checker can read
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
