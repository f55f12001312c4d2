"""Suites that are the held-out examples of a task, with its own prompts and its own report."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from megatron_rl.data.config import DataConfig
from megatron_rl.data.registry import make_task
from megatron_rl.data.task import Example, Report, Sample
from megatron_rl.data.tokenizer import UnknownWordError
from megatron_rl.errors import InputError
from megatron_rl.evaluation.config import SuiteConfig
from megatron_rl.evaluation.suite import ENDLESS, Card, Item, Measures, Suite, no_measures

Groups = Callable[[Example], Mapping[str, str]]


def no_groups(example: Example) -> dict[str, str]:
    """Of suites whose questions are all of one kind."""
    return {}


def options_of(task: str, card: Card, config: SuiteConfig, **more: Any) -> DataConfig:
    """The options of data with which a task reads a suite's rows, and nothing to train on."""
    given: dict[str, Any] = {
        "task": task,
        "eval_path": config.path or card.hub,
        "subset": config.subset or card.subset,
        "eval_split": config.split or card.split,
        "prompt": config.prompt,
        "chat_template_kwargs": config.chat_template_kwargs,
        "max_prompt_tokens": ENDLESS,
    }
    return DataConfig(**(given | more))


def make_suite(
    name: str,
    card: Card,
    data: DataConfig,
    tokenizer: Any,
    seed: int,
    extract: Callable[[Sample], str],
    groups: Groups = no_groups,
    measures: Measures = no_measures,
) -> Suite:
    """The held-out examples of a task as a suite. Raises InputError that says where the data are to be had."""
    try:
        task = make_task(data, seed, tokenizer)
    except UnknownWordError:  # of the model, not of the data
        raise
    except InputError as error:
        raise InputError(f"{name}: {error} {card.where}".rstrip()) from error
    items = [Item(e.id, (replace(e, data_source=name),), groups(e)) for e in task.heldout]
    return Suite(name, tuple(items), _plain(task.report), extract, measures)


def _plain(report: Report) -> Report:
    """A task's report without a measure for each data source: a suite has groups of its own."""
    keywords = getattr(report, "keywords", {})
    if isinstance(report, partial) and "by_source" in keywords:
        return partial(report.func, *report.args, **(keywords | {"by_source": False}))
    return report
