"""Cells of a file as chat messages, and those as the text that is tokenised."""

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from megatron_rl.data.config import DataConfig
from megatron_rl.data.files import Table
from megatron_rl.data.rows.template import Message, Template
from megatron_rl.errors import InputError

PROMPT_COLUMNS = ("messages", "prompt", "question", "problem")  # the first that is there
CHAT_MARKS = ("<|im_start|>", "<|start_header_id|>", "<start_of_turn>", "[INST]", "<｜User｜>")


def chat_marks(config: DataConfig, tokenizer: Any) -> Sequence[str]:
    """What a prompt must not hold: it would go through a chat template for the second time."""
    return CHAT_MARKS if config.prompt == "auto" and tokenizer.chat_template else ()


def render(table: Table, messages: list[list[Message]], template: Template, marks: Sequence[str]) -> list[str]:
    """The prompt of every row; ``marks`` are those of a chat template that a row must not have gone through."""
    found = []
    for row, said in enumerate(messages, start=1):
        if mark := next((m for m in marks if m in said[-1]["content"]), ""):
            raise InputError(
                f"{table.name}, row {row}: the prompt holds {mark!r}, so it went through a chat template already. Set "
                "data.prompt=raw to feed it as it is, or data.prompt=chat to put the template around it again."
            )
        try:
            found.append(template(said))
        except ValueError as error:
            raise InputError(f"{table.name}, row {row}: the prompt cannot be used: {error}.") from error
    return found


def as_messages(cell: Any) -> list[Message] | None:
    """A cell as messages: a text is the user's; None when it is neither text nor messages, or empty."""
    if isinstance(cell, str) and re.match(r"\s*\[\s*\{", cell):
        with contextlib.suppress(ValueError):  # a text may begin so, too
            cell = json.loads(cell)
    if isinstance(cell, str):
        return [{"role": "user", "content": cell}] if cell.strip() else None
    if not isinstance(cell, Sequence) or not cell:
        return None
    for message in cell:
        if not isinstance(message, Mapping) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            return None
    messages = [{"role": message["role"], "content": message["content"]} for message in cell]
    return messages if messages[-1]["role"] != "system" and messages[-1]["content"].strip() else None


def short(cell: Any) -> str:
    """A cell as messages show it."""
    shown = repr(cell)
    return shown if len(shown) <= 200 else f"{shown[:200]}…"
