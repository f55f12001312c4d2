"""Rows to imitate: {prompt, target}, or {messages}, a conversation of which the assistant's turns are learned."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megatron_rl.data.config import DataConfig
from megatron_rl.data.files import Table, read_table
from megatron_rl.data.rows.messages import as_messages, short
from megatron_rl.data.rows.template import Message, Template, make_template
from megatron_rl.data.sets.config import SetConfig
from megatron_rl.data.sets.rows import RowSet, prompts, usable, verbatim
from megatron_rl.data.tokenizer import ended
from megatron_rl.errors import InputError

TARGET_COLUMNS = ("target", "completion", "response")  # the first that is there
Part = tuple[str, bool]
"""A text, and whether it is learned."""


@dataclass(frozen=True)
class Conversation:
    """One row: texts that follow each other and are tokenised one by one."""

    parts: tuple[Part, ...]

    def sequences(self) -> Sequence[Sequence[str]]:
        """As ``Row``."""
        return [[text for text, _ in self.parts]]


def read_conversations(options: SetConfig, data: DataConfig, tokenizer: Any, key: str) -> RowSet[Conversation]:
    """Reads and checks every row; raises InputError naming file, row and column. ``key``: the group of ``options``.

    A conversation whose turns the chat template renders in another way once others follow (some templates take earlier
    thinking away) becomes a row for each of the assistant's turns.
    """
    table = read_table(options.path, options.split, options.limit, options.subset, key)
    if messages := table.find("messages", options.columns):
        made = _conversations(table, messages, data, tokenizer)
    else:
        target = next((c for name in TARGET_COLUMNS if (c := table.find(name, options.columns))), None)
        target = target or table.require("target", options.columns)
        before, replies = prompts(table, options, data, tokenizer), verbatim(table, target)
        made = [
            (number, Conversation(((prompt, False), (ended(reply, tokenizer), True))))
            for number, (prompt, reply) in enumerate(zip(before, replies, strict=True), start=1)
        ]
    return usable(table, options, made, _wrong, tokenizer)


def _wrong(row: Conversation) -> str:
    if not row.parts[0][0]:
        return "the prompt is empty"
    return "" if any(text.strip() for text, learned in row.parts if learned) else "there is nothing to imitate"


def _conversations(table: Table, column: str, data: DataConfig, tokenizer: Any) -> list[tuple[int, Conversation]]:
    if not tokenizer.chat_template:
        raise InputError(
            f"{table.name} has messages, but the tokenizer {tokenizer.name_or_path} has no chat template. Give prompts "
            "and targets, or use the tokenizer of a chat model."
        )
    template = make_template(data, tokenizer)
    found = []
    for number, cell in enumerate(table.column(column), start=1):
        messages = as_messages(cell)
        if messages is None or not any(m["role"] == "assistant" for m in messages[1:]):
            raise InputError(
                f"{table.name}, row {number}, column {column!r}: {short(cell)} is no conversation. It must be a list "
                'of messages {"role": …, "content": …} with one of the assistant behind the first.'
            )
        try:
            turns = _turns(messages, template, data, tokenizer)
        except ValueError as error:
            raise InputError(f"{table.name}, row {number}: the conversation cannot be used: {error}.") from error
        found += [(number, row) for row in _rows(turns)]
    return found


def _turns(messages: list[Message], template: Template, data: DataConfig, tokenizer: Any) -> list[tuple[str, str]]:
    """For each of the assistant's turns: the prompt before it, and what is to be drawn."""
    system = [{"role": "system", "content": data.system_prompt}] if data.system_prompt else []
    messages = messages if messages[0]["role"] == "system" else [*system, *messages]
    turns = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant" or not i:
            continue
        before = template(messages[:i])
        whole = tokenizer.apply_chat_template(messages[: i + 1], tokenize=False, **data.chat_template_kwargs)
        if not whole.startswith(before):
            raise ValueError(f"the chat template does not render turn {i + 1} as a continuation of those before it")
        turns.append((before, whole[len(before) :].rstrip()))
    return turns


def _rows(turns: list[tuple[str, str]]) -> list[Conversation]:
    """One row of all turns where each continues the text of the one before it, else one of each."""
    parts: list[Part] = []
    said = ""
    for before, reply in turns:
        if not before.startswith(said):
            return [Conversation(((before, False), (reply, True))) for before, reply in turns]
        parts += [(before[len(said) :], False), (reply, True)]
        said = before + reply
    return [Conversation(tuple(parts))]
