"""One sample, every reward term and the task's report: what a worker does, and what can be called in-process."""

import asyncio
import inspect
import reprlib
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import Any

from megatron_rl.data.task import Report, Sample
from megatron_rl.errors import InputError
from megatron_rl.rewards.config import RewardsConfig
from megatron_rl.rewards.registry import Reward, is_asynchronous, resolve
from megatron_rl.rewards.schedule import Schedule

COMPONENTS = 256  # most that a reward may return: each becomes a metric of the run
TRACEBACK_HEAD, TRACEBACK_TAIL = 1000, 3000  # characters of a long one that are kept


class RewardError(InputError):
    """A reward or a report raised or returned nothing usable, or the workers cannot run.

    ``sample`` says for which completion.
    """

    def __init__(self, reason: str, sample: str = "") -> None:
        super().__init__(f"{reason.rstrip()}\n{sample}" if sample else reason)
        self.reason, self.sample = reason, sample


@dataclass(frozen=True)
class Term:
    """One reward function with its arguments, and its weight in the sum."""

    name: str
    weight: float
    reward: Reward
    asynchronous: bool = False  # it returns what is awaited
    schedule: Schedule | None = None  # of the weight

    def weight_at(self, step: int) -> float:
        """The weight at an RL step."""
        return self.weight * self.schedule.factor(step) if self.schedule else self.weight


def bind(config: RewardsConfig) -> list[Term]:
    """The terms of a configuration; ``InputError`` for a name without a function."""
    terms = []
    for name, weight in config.terms.items():
        function, args = resolve(name), config.args.get(name, {})
        schedule = Schedule(**config.schedules[name]) if name in config.schedules else None
        terms.append(Term(name, weight, partial(function, **args), is_asynchronous(function, args), schedule))
    return terms


def score_sample(terms: Sequence[Term], sample: Sample) -> tuple[float, dict[str, float]]:
    """The weighted sum of the terms' scores, and all components as ``term/component``.

    ``RewardError`` names a term that raises or returns something else than a number or numbers with the key
    ``score``, and where its function is. They may be infinite or no numbers: then so is the sum.
    """
    return _sum(terms, [_call(_named(term), term.reward, sample, "score") for term in terms], sample.step)


async def score_concurrently(terms: Sequence[Term], sample: Sample) -> tuple[float, dict[str, float]]:
    """The same, with the asynchronous terms under way together; the others are called first, in their order."""
    plain = {term.name: _call(_named(term), term.reward, sample, "score") for term in terms if not term.asynchronous}
    awaited = [term for term in terms if term.asynchronous]
    scores = await asyncio.gather(*(_await(_named(term), term.reward, sample) for term in awaited))
    found = plain | {term.name: score for term, score in zip(awaited, scores, strict=True)}
    return _sum(terms, [found[term.name] for term in terms], sample.step)


def _sum(terms: Sequence[Term], scores: Sequence[dict[str, float]], step: int) -> tuple[float, dict[str, float]]:
    total = 0.0
    components: dict[str, float] = {}
    for term, score in zip(terms, scores, strict=True):
        total += term.weight_at(step) * score["score"]  # 0 x inf is a nan, too
        for key, value in score.items():
            components[f"{term.name}/{key}"] = value
    return total, components


def _named(term: Term) -> str:
    return f"reward {term.name!r}"


def report_sample(report: Report, sample: Sample) -> dict[str, float]:
    """What the task's report says; ``RewardError`` when it raises or returns something else than such numbers."""
    return _call("report of the task", report, sample, "correct")


def _call(what: str, function: Callable[[Sample], Any], sample: Sample, required: str) -> dict[str, float]:
    """The named numbers that a function returns for a sample, ``required`` among them."""
    try:
        returned = function(sample)
    except BaseException as error:  # anyone's code: SystemExit would end the worker without a word
        raise _raised(what, function, error) from error
    return _checked(what, function, returned, required)


async def _await(what: str, function: Callable[[Sample], Any], sample: Sample) -> dict[str, float]:
    """The same of a function whose result is awaited."""
    try:
        returned = await function(sample)
    except asyncio.CancelledError:  # at the deadline
        raise
    except BaseException as error:
        raise _raised(what, function, error) from error
    return _checked(what, function, returned, "score")


def _raised(what: str, function: Callable[..., Any], error: BaseException) -> RewardError:
    """The error with the trace from the function on."""
    raised = "".join(traceback.format_exception_only(error)).strip()
    trace = traceback.format_exception(type(error), error, error.__traceback__ and error.__traceback__.tb_next)
    return RewardError(f"The {what} ({located(function)}) raised {_shortened(raised)}\n{_shortened(''.join(trace))}")


def _checked(what: str, function: Callable[..., Any], returned: Any, required: str) -> dict[str, float]:
    try:
        return _numbers(returned, required)
    except ValueError as error:
        raise RewardError(f"The {what} ({located(function)}) {error}") from error


def located(function: Callable[..., Any]) -> str:
    """A function's name, file and line."""
    while isinstance(function, partial):
        function = function.func
    plain = inspect.unwrap(function)
    name = getattr(plain, "__qualname__", type(plain).__name__)
    code = getattr(plain, "__code__", None) or getattr(vars(type(plain)).get("__call__"), "__code__", None)
    return f"{name} in {code.co_filename}, line {code.co_firstlineno}" if code else name


def _numbers(returned: Any, required: str) -> dict[str, float]:
    """What a function returned, as floats by name; ``ValueError`` says what is wrong with it."""
    if not isinstance(returned, Mapping):
        number = _number(returned) if required == "score" else None
        if number is None:
            raise ValueError(_refusal(returned, required))
        returned = {required: number}
    if len(returned) > COMPONENTS:
        raise ValueError(f"returned {len(returned)} numbers; {COMPONENTS} is the most, for each becomes a metric.")
    numbers = {}
    for key, value in returned.items():
        if not isinstance(key, str):
            raise ValueError(f"returned the key {_shown(key)}; names are texts.")
        number = _number(value)
        if number is None:
            raise ValueError(f"returned {key!r}: {_shown(value)}, which is no number.")
        if not isfinite(number) and required != "score":  # a completion without a reward is left out of its step
            raise ValueError(f"failed: {key} is {number}, not a finite number.")
        numbers[key] = number
    if required not in numbers:
        keys = ", ".join(map(repr, numbers)) or "nothing"
        raise ValueError(f"returned {keys}, but not {required!r}, which is required.")
    return numbers


def _number(value: Any) -> float | None:
    """A number of Python, NumPy or torch, without dimensions; None for anything else."""
    if type(value) is float:
        return value
    if not hasattr(value, "__float__") or getattr(value, "shape", ()) != ():
        return None
    try:
        return float(value)
    except OverflowError:
        return float("inf")
    except (TypeError, ValueError):
        return None


def _refusal(returned: Any, required: str) -> str:
    wanted = "a number, or numbers by name with the key 'score'" if required == "score" else "numbers by name"
    if inspect.isawaitable(returned) or inspect.isasyncgen(returned):
        if inspect.iscoroutine(returned):
            returned.close()  # or Python warns that nobody awaited it
        return f"is asynchronous (async def); make it a plain function that returns {wanted}."
    return f"returned {_shown(returned)}; it must return {wanted}."


def _shown(value: Any) -> str:
    return "None" if value is None else f"{reprlib.repr(value)} ({type(value).__name__})"


def _shortened(text: str) -> str:
    if len(text) <= TRACEBACK_HEAD + TRACEBACK_TAIL:
        return text
    return f"{text[:TRACEBACK_HEAD]}\n[…]\n{text[-TRACEBACK_TAIL:]}"
