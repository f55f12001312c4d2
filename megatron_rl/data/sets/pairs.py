"""Rows to compare: {prompt, chosen, rejected}, perhaps with the prefix that both replies go on from.

``chosen`` and ``rejected`` are texts, or chat messages of which the last is the reply; without a column of prompts
those before it are the prompt. A ``prefix`` (steps that are right so far, as SuperCorrect has them, arXiv 2410.09008)
is part of what is given: its tokens carry no loss, and the replies are then steps, which no end token is put behind.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megatron_rl.data.config import DataConfig
from megatron_rl.data.files import Table, read_table
from megatron_rl.data.rows.messages import PROMPT_COLUMNS, as_messages, chat_marks, render, short
from megatron_rl.data.rows.template import Message, make_template
from megatron_rl.data.sets.config import SetConfig
from megatron_rl.data.sets.rows import RAW_PROMPT, RowSet, prompts, usable, verbatim
from megatron_rl.data.task import UNBOUNDED, Task
from megatron_rl.data.tokenizer import ended
from megatron_rl.errors import InputError

FROM_GENERATOR = 4096  # pairs of a task without end


@dataclass(frozen=True)
class Pair:
    """One row; the texts are tokenised one by one."""

    prompt: str
    prefix: str  # of both replies; empty: none
    chosen: str
    rejected: str

    def sequences(self) -> Sequence[Sequence[str]]:
        """As ``Row``."""
        return [[self.prompt, self.prefix, reply] for reply in (self.chosen, self.rejected)]


def read_pairs(options: SetConfig, data: DataConfig, tokenizer: Any, key: str) -> RowSet[Pair]:
    """Reads and checks every row; raises InputError naming file, row and column. ``key``: the group of ``options``."""
    table = read_table(options.path, options.split, options.limit, options.subset, key)
    columns = {name: table.require(name, options.columns) for name in ("chosen", "rejected")}
    replies = {name: _replies(table, column) for name, column in columns.items()}
    if any(table.find(name, options.columns) for name in (RAW_PROMPT, *PROMPT_COLUMNS[1:])):
        before = prompts(table, options, data, tokenizer)
    else:
        said = _before(table, replies["chosen"], replies["rejected"], options)
        before = render(table, said, make_template(data, tokenizer), chat_marks(data, tokenizer))
    column = table.find("prefix", options.columns)
    prefixes = verbatim(table, column) if column else [""] * table.length
    made = []
    for row, (prompt, prefix, one, other) in enumerate(
        zip(before, prefixes, replies["chosen"], replies["rejected"], strict=True), start=1
    ):
        chosen, rejected = ((t[-1]["content"] if t[-1]["content"].strip() else "") for t in (one, other))
        if not prefix:
            chosen, rejected = ended(chosen, tokenizer), ended(rejected, tokenizer)
        made.append((row, Pair(prompt, prefix, chosen, rejected)))
    return usable(table, options, made, _wrong, tokenizer)


def task_pairs(task: Task, name: str, tokenizer: Any) -> RowSet[Pair]:
    """The pairs of a task's training examples, of a generator the first ``FROM_GENERATOR``; ``name``: data.task.

    Raises InputError where the task has none.
    """
    count = FROM_GENERATOR if len(task.train) == UNBOUNDED else len(task.train)
    rows = []
    for example in (task.train[i] for i in range(count)):
        if example.compared is None:
            raise InputError(
                f"preference.data.path is empty, and data.task={name} has no pairs (training example {example.id}). "
                "Set it to a file (.parquet .jsonl .json .csv) or a hub id with rows {prompt, chosen, rejected}, or "
                "preference.steps=0."
            )
        prefix, *replies = example.compared
        chosen, rejected = replies if prefix else (ended(f"{reply} ", tokenizer) for reply in replies)
        rows.append(Pair(example.prompt, prefix, chosen, rejected))
    return RowSet(rows)


def _wrong(pair: Pair) -> str:
    for name in ("prompt", "chosen", "rejected"):
        if not getattr(pair, name):
            return f"{name} is empty"
    return "chosen and rejected are equal, so there is nothing to prefer" if pair.chosen == pair.rejected else ""


def _replies(table: Table, column: str) -> list[list[Message]]:
    """The cells as messages of which the last is the reply; an empty cell is an empty reply."""
    found = []
    for number, cell in enumerate(table.column(column), start=1):
        messages = as_messages(cell) if not isinstance(cell, str) else [{"role": "assistant", "content": cell}]
        if cell is None or cell == []:
            messages = [{"role": "assistant", "content": ""}]
        if messages is None or messages[-1]["role"] != "assistant":
            raise InputError(
                f"{table.name}, row {number}, column {column!r}: {short(cell)} is no reply. It must be a text, or a "
                'list of messages {"role": …, "content": …} of which the last is the assistant\'s.'
            )
        found.append(messages)
    return found


def _before(
    table: Table, chosen: list[list[Message]], rejected: list[list[Message]], options: SetConfig
) -> list[list[Message]]:
    """What both replies of every row are to."""
    for number, (one, other) in enumerate(zip(chosen, rejected, strict=True), start=1):
        if len(one) == 1:
            table.require("prompt", options.columns)  # there is none: this says which columns there are
        if one[:-1] != other[:-1]:
            raise InputError(
                f"{table.name}, row {number}: chosen and rejected answer different messages. Give what they answer in "
                f"a column of its own, {table.key}.columns.prompt=NAME."
            )
    return [one[:-1] for one in chosen]
