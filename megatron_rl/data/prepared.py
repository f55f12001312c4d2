"""Rows of a file as they are used, and written again in the columns that this project reads first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

from megatron_rl.data.answers.reasoned_choice import LETTERS
from megatron_rl.data.config import DataConfig
from megatron_rl.data.files import Table
from megatron_rl.data.registry import make_task
from megatron_rl.data.rows.kinds import SOTOPIA, Kind
from megatron_rl.data.rows.messages import as_messages, short
from megatron_rl.data.rows.sotopia import conversations
from megatron_rl.data.sets.config import SetConfig
from megatron_rl.data.sets.conversations import read_conversations
from megatron_rl.data.sets.pairs import read_pairs
from megatron_rl.data.task import Example
from megatron_rl.errors import InputError

ENDLESS = 10**9  # tokens: no prompt is too long where no model says what a token is


@dataclass
class Prepared:
    """Rows that can be used."""

    prompts: list[str]  # as they are tokenised; of a conversation, all of it
    answers: list[Any]  # what is right, to imitate or preferred
    rows: list[dict[str, Any]]  # to be written
    notes: dict[str, int]  # what is to be said of them


class Characters:
    """Stands for a tokenizer where there is no model: a character is a token, and there is no chat template."""

    chat_template = None
    bos_token_id = None
    eos_token = ""
    name_or_path = "(no model)"

    def __call__(self, texts: Sequence[str], **options: Any) -> Any:
        """As a tokenizer's."""
        return SimpleNamespace(input_ids=[list(text) for text in texts])


class AnyText(Characters):
    """Stands for the tokenizer of suites, too: prompts are plain."""

    def encode(self, text: str, add_special_tokens: bool = False) -> list[str]:
        """As a tokenizer's."""
        return list(text)

    def get_vocab(self) -> dict[str, int]:
        """As a tokenizer's."""
        return {}


def prepare(table: Table, kind: Kind, config: DataConfig, tokenizer: Any) -> Prepared:
    """Reads and checks every row as a run would; ``config`` names the source. Raises InputError as a run would."""
    if kind.name == SOTOPIA:
        return _sides(table)
    if kind.use == "sft":
        return _conversations(table, config, tokenizer)
    if kind.use == "preference":
        found = read_pairs(_set(config), config, tokenizer, "preference.data")
        pairs = [
            {"raw_prompt": p.prompt, **({"prefix": p.prefix} if p.prefix else {})}
            | {"chosen": _without_end(p.chosen, tokenizer), "rejected": _without_end(p.rejected, tokenizer)}
            for p in found.rows
        ]
        return Prepared([p.prompt for p in found.rows], [p.chosen for p in found.rows], pairs, found.notes)
    evaluated = replace(config, path="", eval_path=config.path, eval_split=config.split)
    task = make_task(evaluated if "evaluation only" in kind.note else config, 0, tokenizer)
    examples = list(task.train) or list(task.heldout)
    rows = [_row(example, kind.use, tokenizer) for example in examples]
    return Prepared([e.prompt for e in examples], [e.answer for e in examples], rows, dict(task.notes))


def _sides(table: Table) -> Prepared:
    """SOTOPIA's episodes as conversations."""
    rows = conversations(table)
    return Prepared(
        ["\n".join(m["content"] for m in row["messages"][:-1]) for row in rows],
        [row["messages"][-1]["content"] for row in rows],
        rows,
        {"conversations, of each side of an episode one": len(rows)},
    )


def _row(example: Example, task: str, tokenizer: Any) -> dict[str, Any]:
    """An example in the columns of its task, without those that are empty."""
    target = _without_end(example.target, tokenizer)
    row: dict[str, Any]
    if task == "social_iqa" and "context" in example.extra:
        row = dict(example.extra) | {"label": str(LETTERS.index(example.answer) + 1)}
    elif task == "social_iqa":
        truth = {**example.extra, "label": str(LETTERS.index(example.answer) + 1)}
        row = {"prompt": example.prompt, "reward_model": {"ground_truth": truth}}
    elif task == "multiple_choice":
        row = dict(example.extra) | {"answer": example.answer}
    else:
        row = {"prompt": example.prompt, "answer": example.answer} | _others(example.extra)
    return row | {k: v for k, v in (("data_source", example.data_source), ("target", target)) if v}


def _others(extra: Mapping[str, Any]) -> dict[str, Any]:
    """Further columns, but those that would be taken for the prompt or the answer."""
    taken = ("prompt", "messages", "question", "problem", "answer", "ground_truth", "reward_model")
    return {name: value for name, value in extra.items() if name not in taken}


def _conversations(table: Table, config: DataConfig, tokenizer: Any) -> Prepared:
    column = table.find("messages", config.columns)
    rows: list[dict[str, Any]] = []
    if column and isinstance(tokenizer, Characters):  # what a chat template would make of them, no one knows
        for number, cell in enumerate(table.column(column), start=1):
            messages = as_messages(cell)
            if messages is None or not any(m["role"] == "assistant" for m in messages[1:]):
                raise InputError(f"{table.name}, row {number}, column {column!r}: {short(cell)} is no conversation.")
            rows.append({"messages": messages})
        texts = ["\n".join(f"{m['role']}: {m['content']}" for m in row["messages"][:-1]) for row in rows]
        return Prepared(texts, [row["messages"][-1]["content"] for row in rows], rows, {})
    found = read_conversations(_set(config), config, tokenizer, "sft.data")
    if column:
        rows = [{"messages": as_messages(cell)} for cell in table.column(column)]
    else:
        parts = [row.parts for row in found.rows]
        rows = [{"raw_prompt": p[0][0], "target": _without_end(p[-1][0], tokenizer)} for p in parts]
    prompts = ["".join(text for text, _ in row.parts[:-1]) for row in found.rows]
    return Prepared(prompts, [row.parts[-1][0] for row in found.rows], rows, found.notes)


def _set(config: DataConfig) -> SetConfig:
    return SetConfig(
        path=config.path,
        subset=config.subset,
        split=config.split,
        columns=config.columns,
        max_tokens=config.max_prompt_tokens,
        bad_rows=config.bad_rows,
        limit=config.limit,
    )


def _without_end(text: str, tokenizer: Any) -> str:
    return text.removesuffix(tokenizer.eos_token)
