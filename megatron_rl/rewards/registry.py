"""Reward functions by name or dotted path, and what can be wrong with the options. Imports no torch."""

import inspect
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from math import isfinite
from typing import Any, Literal, Protocol, get_args, get_origin, get_type_hints

from megatron_rl.data.task import Report, Sample
from megatron_rl.errors import InputError
from megatron_rl.rewards.config import RewardsConfig
from megatron_rl.rewards.schedule import check_schedule
from megatron_rl.system.named import find

Score = dict[str, float]
"""Named components; the key ``score`` is the term's value and is required."""
Reward = Callable[..., Any]
"""``reward(sample, **args)``: a function, called in a worker process for every completion with its ``Sample`` and the
arguments of ``rewards.args``; ``async def`` where it waits for others: then ``rewards.concurrency`` samples are under
way at once.

It returns a number, or numbers by name with the key ``score``: the score is weighed by ``rewards.terms`` and added to
the completion's reward, and the mean of every number is a metric, ``reward/NAME/KEY``. Numbers are finite; booleans and
scalars of NumPy and torch are numbers. Anything else, and whatever it raises, ends the run. One call takes at most
``rewards.deadline`` seconds, a worker's first at most ``rewards.first_deadline``: the worker is killed then, and the
completion's reward is ``rewards.deadline_score``. An asynchronous call is cancelled instead.

Beside it may stand ``NAME_services(**args) -> Sequence[Service]``: what it asks over the network with these arguments,
which is checked before a run and named in its manifest. A function that has services is asynchronous with them.

The same sample must always get the same score: no state that one call leaves to the next but what it has loaded.
"""


class Service(Protocol):
    """Something that a reward asks over the network."""

    def violations(self, deadline: float) -> list[str]:
        """What is wrong with how it is to be asked, or that nobody answers; ``deadline``: seconds of a sample."""

    def unfit(self, sample: Sample) -> list[str]:
        """What is wrong with asking about a sample, which nobody is asked for."""

    def facts(self) -> dict[str, Any]:
        """What it is, for the manifest: no secrets."""


BUILTIN = {
    "answer_in_format": "megatron_rl.rewards.terms.answer.answer_in_format",
    "deep_enlighten": "megatron_rl.rewards.terms.social.deep_enlighten.deep_enlighten",
    "exact_answer": "megatron_rl.rewards.terms.exact_answer.exact_answer",
    "format": "megatron_rl.rewards.terms.style.format.format",
    "judge": "megatron_rl.rewards.terms.judge.judge",
    "language": "megatron_rl.rewards.terms.style.language.language",
    "length_window": "megatron_rl.rewards.terms.style.length.length_window",
    "math_answer": "megatron_rl.rewards.terms.math_answer.math_answer",
    "multiple_choice": "megatron_rl.rewards.terms.answer.multiple_choice",
    "reasoning_gym": "megatron_rl.rewards.terms.reasoning_gym.reasoning_gym",
    "reasoning_style": "megatron_rl.rewards.terms.style.reasoning_style.reasoning_style",
    "repetition": "megatron_rl.rewards.terms.style.repetition.repetition",
    "reward_model": "megatron_rl.rewards.terms.reward_model.reward_model",
    "sip_content": "megatron_rl.rewards.terms.social.sip.sip_content",
    "sip_structure": "megatron_rl.rewards.terms.social.sip.sip_structure",
    "social_monitors": "megatron_rl.rewards.terms.social.social_monitors.social_monitors",
    "social_r1": "megatron_rl.rewards.terms.social.social_r1.social_r1",
    "temporal_clue": "megatron_rl.rewards.terms.temporal_clue.temporal_clue",
}


def resolve(name: str) -> Reward:
    """The function behind a built-in name or a dotted path; ``InputError`` when there is none."""
    otherwise = "the dotted path of a function of your own, such as my_package.my_module.my_reward"
    return find(name, BUILTIN, f"rewards.terms: {name!r}", otherwise)


def services(function: Reward, args: Mapping[str, Any]) -> Sequence[Service]:
    """What a reward asks over the network with these arguments."""
    name, module = getattr(function, "__name__", ""), sys.modules.get(getattr(function, "__module__", ""))
    of = getattr(module, f"{name}_services", None)
    found: Sequence[Service] = of(**args) if of is not None else ()
    return found


def is_asynchronous(function: Reward, args: Mapping[str, Any]) -> bool:
    """Whether what a reward returns has to be awaited."""
    plain = inspect.unwrap(function)
    called = vars(type(plain)).get("__call__")
    return any(map(inspect.iscoroutinefunction, (plain, called))) or bool(services(function, args))


def reward_facts(config: RewardsConfig) -> dict[str, Any]:
    """For the manifest: what every reward asks over the network, reward -> its services' facts."""
    asked = {name: services(resolve(name), config.args.get(name, {})) for name in config.terms}
    return {name: [service.facts() for service in some] for name, some in asked.items() if some}


def changed_rubrics(known: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """Rubrics of judges that differ in ``reward_facts`` of when the run began and of now; a sentence each."""
    found = []
    for name, some in asked.items():
        before = {facts["rubric"]: facts["rubric_hash"] for facts in known.get(name, ()) if "rubric" in facts}
        for facts in some:
            if "rubric" in facts and before.get(facts["rubric"], facts["rubric_hash"]) != facts["rubric_hash"]:
                found.append(
                    f"The rubric {facts['rubric']} of the reward {name} changed since the run began: restore it, or "
                    "use a new run.name."
                )
    return found


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
            function, args = resolve(name), config.args.get(name, {})
            about = _reward_violations(name, function, args)
            for service in () if about else services(function, args):
                about += [f"rewards.args.{name}: {said}" for said in service.violations(config.deadline)]
            found += about
        except InputError as error:
            found.append(str(error))
    if config.overlong_factor != RewardsConfig().overlong_factor and not config.overlong_buffer:
        found.append(
            f"rewards.overlong_factor={config.overlong_factor} does nothing without rewards.overlong_buffer: set that "
            "to the number of tokens below rollout.max_new_tokens over which the reward falls."
        )
    for name, schedule in config.schedules.items():
        found += check_schedule(f"rewards.schedules.{name}", schedule)
    for key, names in (("rewards.args", config.args), ("rewards.schedules", config.schedules)):
        for name in names:
            if name not in config.terms:
                near = get_close_matches(name, config.terms, n=1)
                what = "its arguments" if key == "rewards.args" else "its schedule"
                hint = f"; did you mean {near[0]}?" if near else f"; add it there or take {what} away."
                found.append(f"{key} names {name!r}, which is not in rewards.terms{hint}")
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
    """What ``function(sample, **args)`` would not accept."""
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
