"""What the stages' own rows share: prompts, lengths, and rows that cannot be used."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import xxhash

from megatron_rl.data.config import DataConfig
from megatron_rl.data.files import Table
from megatron_rl.data.rows import choices
from megatron_rl.data.rows.messages import PROMPT_COLUMNS, as_messages, chat_marks, render, short
from megatron_rl.data.rows.template import Message, make_template
from megatron_rl.data.sets.config import SetConfig
from megatron_rl.data.tokenizer import require_encodable
from megatron_rl.errors import InputError

RAW_PROMPT = "raw_prompt"  # the column of prompts that have their form already, as completions.jsonl has them


class Row(Protocol):
    """One row, made of texts that are tokenised one by one."""

    def sequences(self) -> Sequence[Sequence[str]]:
        """The texts of each sequence that is made of the row."""


R = TypeVar("R", bound=Row)


@dataclass
class RowSet(Generic[R]):
    """A stage's own rows, and how many of the file's were left out ("rows left out, too long" -> 3)."""

    rows: list[R]
    notes: dict[str, int] = field(default_factory=dict)

    def fingerprint(self) -> str:
        """Hash of the rows as they are learned from (xxh3-128, hex)."""
        digest = xxhash.xxh3_128()
        for row in self.rows:
            digest.update(repr(row).encode())
        return digest.hexdigest()


def prompts(table: Table, options: SetConfig, data: DataConfig, tokenizer: Any) -> list[str]:
    """The prompt of every row. Raises InputError naming the row that has none."""
    if column := table.find(RAW_PROMPT, options.columns):
        return verbatim(table, column)
    names = sorted(PROMPT_COLUMNS[1:], key=lambda name: name not in options.columns)  # what is asked for goes first
    column = next((c for name in names if (c := table.find(name, options.columns))), None)
    column = column or table.require("prompt", options.columns)
    found: list[list[Message]] = []
    for number, cell in enumerate(table.column(column), start=1):
        messages = as_messages(cell)
        if messages is None:
            raise InputError(
                f"{table.name}, row {number}, column {column!r}: the prompt is {short(cell)}. It must be a text, or a "
                'list of messages {"role": "user", "content": "…"}.'
            )
        found.append(messages)
    return render(table, found, make_template(data, tokenizer), chat_marks(data, tokenizer))


def verbatim(table: Table, column: str) -> list[str]:
    """The cells of a column as texts, spaces at their ends included, missing ones empty.

    Raises InputError naming a row that has something else.
    """
    found = []
    for row, cell in enumerate(table.column(column), start=1):
        try:
            found.append(cell if isinstance(cell, str) else choices.text(cell))
        except ValueError as error:
            raise InputError(f"{table.name}, row {row}, column {column!r}: {error}.") from error
    return found


def usable(
    table: Table, options: SetConfig, made: Sequence[tuple[int, R]], wrong: Callable[[R], str], tokenizer: Any
) -> RowSet[R]:
    """The rows (number in the file, row) without those of which ``wrong`` says something, or that are too long.

    With bad_rows=error the first of them is an InputError.
    """
    texts = ((number, text) for number, row in made for texts in row.sequences() for text in texts)
    require_encodable(tokenizer, ((f"{table.name}, row {number}", text) for number, text in texts))
    kept: list[R] = []
    notes: dict[str, int] = {}
    for number, row in made:
        said = wrong(row) or _too_long(row, options.max_tokens, tokenizer)
        if not said:
            kept.append(row)
        elif options.bad_rows == "error":
            raise InputError(
                f"{table.name}, row {number}: {said}. Mend or remove it, or leave such rows out with "
                f"{table.key}.bad_rows=drop."
            )
        else:
            what = f"{table.key}: rows left out, {said.partition(',')[0]}"
            notes[what] = notes.get(what, 0) + 1
    if not kept:
        left = "; ".join(f"{count} {what}" for what, count in notes.items())
        raise InputError(f"{table.name} has no row that can be used: {left}.")
    return RowSet(kept, notes)


def _too_long(row: Row, most: int, tokenizer: Any) -> str:
    if all(sum(len(text.encode()) for text in texts) <= most for texts in row.sequences()):  # tokens have bytes
        return ""
    parts = [tokenizer(list(texts), add_special_tokens=False).input_ids for texts in row.sequences()]
    longest = max(sum(map(len, part)) for part in parts)
    return f"it is too long, with {longest} tokens where max_tokens is {most}" if longest > most else ""
