"""Several tasks as one: their examples side by side, each with its own report, drawn by weight."""

import dataclasses
import typing
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from itertools import accumulate
from math import isfinite
from typing import Any

import xxhash

from megatron_rl.data.config import DataConfig
from megatron_rl.data.task import UNBOUNDED, Example, Examples, Report, Sample, Task
from megatron_rl.errors import InputError, refuse
from megatron_rl.option import allowed

TASK = "task"  # key of an example's extra: the name of the task that it comes from
_SHARED = ("mixture", "max_prompt_tokens")  # options that are one for all


def weights(config: DataConfig) -> dict[str, float]:
    """Name of each task -> its share of the examples that are drawn; they add up to 1."""
    given = {name: float(options.get("weight", 1.0)) for name, options in config.mixture.items()}
    return {name: weight / sum(given.values()) for name, weight in given.items()}


def parts(config: DataConfig) -> dict[str, DataConfig]:
    """The options of each task of ``data.mixture``, or of the only one under the name "". Raises InputError."""
    if not config.mixture:
        return {"": config}
    refuse(problems(config))
    return {
        name: _changed(dataclasses.replace(config, mixture={}), _options(options), "", [])
        for name, options in config.mixture.items()
    }


def problems(config: DataConfig) -> list[str]:
    """What is wrong with ``data.mixture`` itself, a sentence each."""
    found: list[str] = []
    for name, options in config.mixture.items():
        key = f"data.mixture.{name}"
        if not isinstance(options, Mapping):
            found.append(f"{key} is {options!r}; it must hold options, such as {{path: a.jsonl, weight: 2}}.")
            continue
        if not name or "/" in name:
            found.append(f"{key}: the name of a task has no / in it and is not empty.")
        weight = options.get("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not isfinite(weight) or weight <= 0:
            found.append(f"{key}.weight is {weight!r}; it must be a number above 0.")
        for shared in _SHARED:
            if shared in options:
                found.append(f"{key}.{shared}: this is one for all tasks; set data.{shared}.")
        own = {name: value for name, value in _options(options).items() if name not in _SHARED}
        _changed(dataclasses.replace(config, mixture={}), own, f"{key}.", found)
    return found


def _options(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "weight"}


def _changed(config: Any, options: Mapping[str, Any], prefix: str, found: list[str]) -> Any:
    """A configuration with some options changed; what cannot be goes to ``found``."""
    hints, fields = typing.get_type_hints(type(config)), {f.name: f for f in dataclasses.fields(config)}
    values: dict[str, Any] = {}
    for name, value in options.items():
        if name not in fields:
            near = get_close_matches(name, fields, n=1)
            found.append(f"{prefix}{name}: there is no such option{f'; did you mean {near[0]}?' if near else '.'}")
            continue
        present = getattr(config, name)
        if dataclasses.is_dataclass(present):
            if not isinstance(value, Mapping):
                found.append(f"{prefix}{name} is {value!r}; it must hold options, such as {{by: column}}.")
                continue
            value = _changed(present, value, f"{prefix}{name}.", found)
        else:
            hint, inner = hints[name], typing.get_args(hints[name])
            if type(None) in inner:  # float | None
                hint = next(kind for kind in inner if kind is not type(None))
            wanted = typing.get_origin(hint) or hint
            number = wanted is float and isinstance(value, int) and not isinstance(value, bool)
            null = value is None and type(None) in inner
            if not number and not null and (not isinstance(value, wanted) or (wanted is int and type(value) is bool)):
                found.append(f"{prefix}{name} is {value!r}, and must be of the type {wanted.__name__}.")
                continue
            if not (rule := allowed(fields[name])).holds(value):
                found.append(f"{prefix}{name} is {value!r}; it {rule.violation(value)}.")
                continue
        values[name] = value
    return dataclasses.replace(config, **values)


class Chained(Examples):
    """The examples of several tasks, one task after the other; an example's id begins with its task's name.

    A generator counts as that many examples that all together do not exceed ``UNBOUNDED``.
    """

    def __init__(self, sequences: Mapping[str, Sequence[Example]]) -> None:
        self.names, self.sequences = list(sequences), sequences
        most = UNBOUNDED // len(sequences)
        self.ends = list(accumulate(min(len(s), most) for s in sequences.values()))
        self.unbounded = any(len(s) == UNBOUNDED for s in sequences.values())

    def __len__(self) -> int:
        return UNBOUNDED if self.unbounded else self.ends[-1]

    def example(self, index: int) -> Example:
        """As ``Examples.example``."""
        name, own = self.of(index)
        example = self.sequences[name][own]
        if TASK in example.extra:
            raise InputError(
                f"data.mixture.{name}: its rows have a column {TASK!r}, where a mixture has the name of an example's "
                "task: rename the column."
            )
        return dataclasses.replace(
            example,
            id=f"{name}/{example.id}",
            data_source=example.data_source or name,
            extra=example.extra | {TASK: name},
        )

    def place(self, name: str, own: int) -> int:
        """Of an example of a task; a generator's that lies beyond what counts of it is one that does."""
        first, end = self._bounds(self.names.index(name))
        return first + own % (end - first)

    def of(self, index: int) -> tuple[str, int]:
        """The task of an example, and its index there. Raises IndexError."""
        index += len(self) if index < 0 else 0
        part = bisect_right(self.ends, index)
        if index < 0 or part == len(self.ends):
            raise IndexError(f"example {index} of {len(self)}")
        return self.names[part], index - self._bounds(part)[0]

    def _bounds(self, part: int) -> tuple[int, int]:
        return (self.ends[part - 1] if part else 0), self.ends[part]


def report(sample: Sample, reports: Mapping[str, Report], by_source: bool = False) -> dict[str, float]:
    """What the task that a sample comes from says of it. ``by_source``: ``correct/NAME`` too, NAME its data source."""
    found = reports[sample.extra[TASK]](sample)
    return found | ({f"correct/{sample.data_source}": found["correct"]} if by_source else {})


class Mixture:
    """The task that several make together."""

    def __init__(self, tasks: Mapping[str, Task]) -> None:
        self.tasks = tasks
        self.chained = Chained({name: task.train for name, task in tasks.items()})
        self.train: Sequence[Example] = self.chained
        heldout = Chained({name: task.heldout for name, task in tasks.items()})
        in_turn = sorted(range(len(heldout)), key=lambda index: heldout.of(index)[1])  # the first ones are of all tasks
        self.heldout: Sequence[Example] = [heldout[index] for index in in_turn]
        self.notes = {
            f"{what} of {name}": count for name, task in tasks.items() for what, count in _notes(task).items()
        }
        several = len({example.data_source for example in self.heldout}) > 1
        reports = {name: task.report for name, task in tasks.items()}
        self.report: Report = partial(report, reports=reports, by_source=several)

    def fingerprint(self) -> str:
        """Hash of the tasks' names and fingerprints."""
        said = "\n".join(f"{name} {task.fingerprint()}" for name, task in self.tasks.items())
        return xxhash.xxh3_128_hexdigest(said.encode())


def mix(config: DataConfig, make: Callable[[DataConfig], Task]) -> Mixture:
    """The tasks of ``data.mixture``. Raises InputError, as ``make`` does, naming the task."""
    tasks = {}
    for name, part in parts(config).items():
        try:
            tasks[name] = make(part)
        except InputError as error:
            raise InputError(f"data.mixture.{name}: {error}") from error
        if not len(tasks[name].train):
            raise InputError(f"data.mixture.{name} has no training examples; give it data to train on, or take it out.")
    return Mixture(tasks)


def _notes(task: Task) -> dict[str, int]:
    return dict(getattr(task, "notes", {}))
