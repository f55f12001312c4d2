"""Suites by name. Imports no torch."""

import dataclasses
import importlib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from megatron_rl.data.task import Report, Sample
from megatron_rl.data.tokenizer import require_encodable
from megatron_rl.errors import InputError
from megatron_rl.evaluation.config import BenchmarkConfig, SuiteConfig
from megatron_rl.evaluation.suite import Card, Suite, missing
from megatron_rl.option import allowed

SUITES = {  # the module of megatron_rl.evaluation.suites
    "tombench": "tombench",
    "hi_tom": "hi_tom",
    "tomi": "tomi",
    "social_iqa": "social_iqa",
    "emobench": "emobench",
    "simpletom": "simpletom",
    "fantom": "fantom",
    "false_belief": "beliefs",
    "higher_order_belief": "beliefs",
    "gsm8k": "mathematics",
    "math500": "mathematics",
    "aime24": "mathematics",
    "amc23": "mathematics",
    "temporal_clue": "temporal_clue",
    "file": "file",
}
_READ = ("path", "subset", "split", "limit", "prompt", "chat_template_kwargs")
COMMON = (*_READ, "samples", "temperature", "top_p", "top_k", "max_new_tokens")
BENCHMARK = "lm_eval:"  # what the names of lm-eval's tasks begin with
_Config = TypeVar("_Config", SuiteConfig, BenchmarkConfig)


def card(name: str) -> Card:
    """What is to be known of a suite. Raises InputError with the nearest names for an unknown one."""
    if name.startswith(BENCHMARK):
        raise InputError(f"{name} is a task of lm-eval, which only `evaluate MODEL {name}` asks.")
    if name not in SUITES:
        near = get_close_matches(name, SUITES, n=3)
        said = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(SUITES)}."
        raise InputError(f"There is no suite {name!r}; {said}")
    found: Card = _module(name).CARDS[name]
    return found


def make_suite(name: str, config: SuiteConfig, tokenizer: Any, seed: int = 0) -> Suite:
    """A suite's questions, for a model's tokenizer. Raises InputError for what cannot be read."""
    card(name)
    suite: Suite = _module(name).make(name, config, tokenizer, seed)
    items = suite.items[: config.limit] if config.limit else suite.items
    if not items:
        raise InputError(f"{name} has no questions in language={config.language}.")
    asked = ((f"question {item.id} of {name}", form.prompt) for item in items for form in item.forms)
    require_encodable(tokenizer, asked)
    return replace(suite, items=items)


def suite_config(name: str, options: Any) -> tuple[SuiteConfig, list[str]]:
    """A suite's options, and what is wrong with them or with where its data are, a sentence each."""
    try:
        known = card(name)
    except InputError as error:
        return SuiteConfig(), [str(error)]
    if not isinstance(options, Mapping | None):
        return SuiteConfig(), [f"{name} is {options!r}; it must hold options, such as {{limit: 100}}."]
    config, found = _read(name, SuiteConfig(max_new_tokens=known.max_new_tokens), options, (*COMMON, *known.takes))
    if config.samples > 1 and not config.temperature:
        found.append(f"{name}.samples={config.samples} draws the same completion each time: set {name}.temperature.")
    if not found and (said := missing(known, name, config)):
        found.append(said)
    return config, found


def benchmark_config(name: str, options: Mapping[str, Any]) -> tuple[BenchmarkConfig, list[str]]:
    """The options of a task of lm-eval, and what is wrong with them, a sentence each."""
    takes = [each.name for each in dataclasses.fields(BenchmarkConfig)]
    config, found = _read(name, BenchmarkConfig(), options, takes)
    for key in ("path", "include"):
        if (folder := getattr(config, key)) and not Path(folder).is_dir():
            found.append(f"{name}.{key} is {folder!r}, and must be a folder (docs/evaluation.md says what is in it).")
    if not config.temperature and (config.top_p < 1 or config.top_k):
        found.append(f"{name}: top_p and top_k choose among what is drawn: set {name}.temperature, too.")
    return config, found


def _read(name: str, config: _Config, options: Any, takes: Sequence[str]) -> tuple[_Config, list[str]]:
    """``config`` with the options that are given, and what is wrong with them."""
    kind, found = type(config), []
    hints, declared = typing.get_type_hints(kind), {f.name: f for f in dataclasses.fields(kind)}
    for key, value in (options or {}).items():
        if key not in takes:
            near = get_close_matches(str(key), takes, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(takes)}."
            found.append(f"{name}.{key}: {name} has no such option; {hint}")
            continue
        wanted = typing.get_origin(hints[key]) or hints[key]
        if wanted is float and type(value) is int:
            value = float(value)
        if not isinstance(value, wanted) or (wanted is int and type(value) is bool):
            found.append(f"{name}.{key} is {value!r}, and must be of the type {wanted.__name__}.")
        elif not (rule := allowed(declared[key])).holds(value):
            found.append(f"{name}.{key} is {value!r}; it {rule.violation(value)}.")
        else:
            config = replace(config, **{key: value})
    return config, found


def report_of(suites: Mapping[str, Suite]) -> Report:
    """One report for the completions of several suites, to be called in the reward workers."""
    return partial(_report, reports={name: suite.report for name, suite in suites.items()})


def _report(sample: Sample, reports: Mapping[str, Report]) -> dict[str, float]:
    return reports[sample.data_source](sample)


def _module(name: str) -> Any:
    return importlib.import_module(f"megatron_rl.evaluation.suites.{SUITES[name]}")
