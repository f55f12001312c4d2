"""A user's own file: the rows that a task of data takes, with its prompts and its report."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from megatron_rl.data.answers.chosen_option import after_thinking, chosen
from megatron_rl.data.answers.exact_answer import given, normalise
from megatron_rl.data.answers.think_answer import letter, parse
from megatron_rl.data.files import Table
from megatron_rl.data.rows.kinds import recognise
from megatron_rl.data.task import Example, Sample
from megatron_rl.errors import InputError
from megatron_rl.evaluation.config import SuiteConfig
from megatron_rl.evaluation.suite import Card, Item, Suite, read_rows
from megatron_rl.evaluation.suites.tasks import make_suite, options_of

CARDS = {
    "file": Card(
        title="Your own file",
        source="file.path: a .parquet, .jsonl, .json or .csv file, or a hub id",
        licence="yours to know",
        protocol="prompts and report of the data task that takes its rows (docs/data.md); file.by: columns to give "
        "accuracy by; file.pool: rows with the same value in a column are one vote (Cross-Lingual Consistency)",
        training="yours to know",
        where="Set file.path to it.",
        takes=("task", "columns", "template", "by", "pool"),
    )
}


def extract(sample: Sample) -> str:
    """The answer in tags or a box; else an option's letter where the row has options; else the last number."""
    text = parse(sample.prompt, sample.response).text
    if (marked := letter(text)) and "options" in sample.extra:
        return marked
    if (found := given(text, ("tag", "boxed"))) is None and isinstance(options := sample.extra.get("options"), list):
        return chosen(text, options)[0]
    return normalise(found or given(after_thinking(text), ("number",)) or "")


def make(name: str, config: SuiteConfig, tokenizer: Any, seed: int) -> Suite:
    """Reads and checks every row. Raises InputError where no task is known to take them."""
    card = CARDS[name]
    table = read_rows(name, card, config)
    task = config.task or _task(table, config)
    data = options_of(task, card, config, columns=config.columns, template=config.template)
    if columns := [c for c in (*config.by, config.pool) if c and c not in table.cells]:
        raise InputError(f"{name}: {table.name} has no column {columns[0]!r}; it has {', '.join(table.columns)}.")
    cells = {column: table.column(column) for column in (*config.by, *filter(None, [config.pool]))}
    suite = make_suite(name, card, data, tokenizer, seed, extract, _groups(config, cells))
    return replace(suite, items=_pooled(suite, cells[config.pool])) if config.pool else suite


def _task(table: Table, config: SuiteConfig) -> str:
    kind = recognise(table)
    if kind is not None and kind.use not in ("", "sft", "preference"):
        return kind.use
    if config.template or "answer" in config.columns:
        return "prompt_answer"
    raise InputError(
        f"file: the columns of {table.name}, {', '.join(table.columns)}, are of no form that has questions with "
        "answers. Name the task with file.task, or columns with file.columns (docs/data.md)."
    )


def _row(example: Example) -> int:
    return int(example.id.rpartition("/")[2]) - 1


def _groups(config: SuiteConfig, cells: Mapping[str, list[Any]]) -> Callable[[Example], Mapping[str, str]]:
    return lambda example: {column: str(cells[column][_row(example)]) for column in config.by}


def _pooled(suite: Suite, values: list[Any]) -> tuple[Item, ...]:
    """Items of the rows with the same value, which must have the same answer; the groups are those of the first."""
    pools: dict[str, list[Item]] = defaultdict(list)
    for item in suite.items:
        pools[str(values[_row(item.forms[0])])].append(item)
    for value, items in pools.items():
        if len({repr(item.forms[0].answer) for item in items}) > 1:
            raise InputError(f"file: the rows of pool {value!r} have different answers, so they are not one question.")
    return tuple(Item(v, tuple(form for i in items for form in i.forms), items[0].groups) for v, items in pools.items())
