"""Questions with an answer that is checked as it is: arithmetic, mathematics, and whatever a reward of yours can judge.

A row has a prompt: chat messages (``messages`` or ``prompt``, a list of {role, content}) or a text (``prompt``,
``question`` or ``problem``, or made from any columns by data.template); and an answer of any type, which the rewards
get as it is. Files of three kinds are known by their columns: verl's (``prompt``, ``reward_model.ground_truth``),
GSM8K's (an ``answer`` that ends in ``#### n``: n is the answer) and MATH's (``problem``, ``solution``, perhaps
``answer``; else it is what the solution has in its last ``\\boxed{}``). ``target`` (a completion to imitate) and
``data_source`` are optional. The rewards find every other column, and the solution, in ``sample.extra``.
"""

from typing import Any

from megatron_rl.data.answers.exact_answer import judge
from megatron_rl.data.answers.think_answer import parse
from megatron_rl.data.config import DataConfig
from megatron_rl.data.files import Table
from megatron_rl.data.rows.answers import Answers, read_answers
from megatron_rl.data.rows.fill import filled, read_template, template_problems
from megatron_rl.data.rows.messages import PROMPT_COLUMNS, as_messages, chat_marks, render, short
from megatron_rl.data.rows.parts import Part, Rows, load_parts, texts
from megatron_rl.data.rows.template import Message, make_template
from megatron_rl.data.task import Example, Sample
from megatron_rl.data.tokenizer import ended
from megatron_rl.errors import InputError

BESIDE = ("story", "context", "passage", "options", "choices")  # a question rarely makes sense without them
COLUMNS = (*PROMPT_COLUMNS, "answer", "solution", "data_source", "target")


def report(sample: Sample, by_source: bool = False) -> dict[str, float]:
    """``correct``: the completion's answer is the right one; ``answered``: it gives one. ``by_source``, for held-out
    files with several data sources: ``correct/NAME`` is the same for the one of this sample."""
    correct, answered = judge(parse(sample.prompt, sample.response).text, sample.answer)
    found = {"correct": float(correct), "answered": float(answered)}
    if by_source:
        found[f"correct/{sample.data_source}"] = found["correct"]
    return found


def make_prompt_answer(config: DataConfig, seed: int, tokenizer: Any) -> Rows:
    """Reads and checks every row of data.path and data.eval_path; raises InputError naming file, row and column."""
    template = make_template(config, tokenizer)
    marks = chat_marks(config, tokenizer)

    def make(table: Table, part: str) -> Part:
        messages, used = _messages(table, config)
        prompts = render(table, messages, template, marks)
        answers = read_answers(table, config.columns)
        _require_answers(table, answers, config)
        optional = {name: column for name in ("target", "data_source") if (column := table.find(name, config.columns))}
        targets, sources = (
            texts(table, optional[name]) if name in optional else [""] * table.length
            for name in ("target", "data_source")
        )
        left = [c for c in table.columns if c not in (*used, answers.column, *optional.values())]
        extras = [dict(zip(left, cells, strict=True)) for cells in _rows(table, left)]
        for extra, solution in zip(extras, answers.solutions, strict=True):
            extra |= {"solution": solution} if solution else {}
        examples = [
            Example(f"{part}/{row}", prompt, answer, ended(target, tokenizer), source, extra)
            for row, (prompt, answer, target, source, extra) in enumerate(
                zip(prompts, answers.values, targets, sources, extras, strict=True), start=1
            )
            if answer is not None
        ]
        counts = {
            "left out, without an answer": table.length - len(examples),
            "whose answer is an object (correct: the same JSON)": sum(isinstance(e.answer, dict) for e in examples),
        }
        return Part(examples, counts)

    return Rows(*load_parts(config, tokenizer, make), report)


def check_options(config: DataConfig) -> list[str]:
    """What is wrong with the options that this task has beside those of every task."""
    found = []
    if config.prompt == "raw" and (config.system_prompt or config.chat_template_kwargs):
        found.append(
            "data.prompt=raw feeds a prompt as it is: leave data.system_prompt and data.chat_template_kwargs empty."
        )
    return found + (template_problems(config.template) if config.template else [])


def _messages(table: Table, config: DataConfig) -> tuple[list[list[Message]], list[str]]:
    """The messages of every row, and the columns that they were made from (those that nothing else needs)."""
    if config.template:
        texts = filled(table, read_template(config.template), config)
        return [[{"role": "user", "content": text}] for text in texts], []
    names = sorted(PROMPT_COLUMNS, key=lambda name: name not in config.columns)  # what is asked for goes first
    column = next((c for name in names if (c := table.find(name, config.columns))), None)
    column = column or table.require("question", config.columns)
    beside = next((c for name in BESIDE if (c := table.find(name, {}))), None)
    if beside and column in (table.find(name, config.columns) for name in ("question", "problem")):
        raise InputError(
            f"{table.name} has a column {beside!r}, and the prompt would be {column!r} alone. Say what the prompt is "
            f"with data.template, such as '{{{beside}}} {{{column}}}', or '{{{column}}}' to leave it out."
        )
    found = []
    for number, cell in enumerate(table.column(column), start=1):
        messages = as_messages(cell)
        if messages is None:
            raise InputError(
                f"{table.name}, row {number}, column {column!r}: the prompt is {short(cell)}. It must be a text, or a "
                'list of messages {"role": "user", "content": "…"} of which the last is the user\'s.'
            )
        found.append(messages)
    return found, [column]


def _require_answers(table: Table, answers: Answers, config: DataConfig) -> None:
    """Raises InputError for a row without an answer, unless such rows are left out and others stay."""
    row, count = answers.first_missing(), sum(value is None for value in answers.values)
    if row and (config.bad_rows == "error" or count == table.length):
        raise InputError(
            f"{table.name}, row {row}, column {answers.column!r}: the answer {answers.missing}. {count} of "
            f"{table.length} rows have none. Fill them in, leave them out with data.bad_rows=drop, or name another "
            "column with data.columns.answer=NAME."
        )


def _rows(table: Table, columns: list[str]) -> list[tuple[Any, ...]]:
    cells = [table.column(column) for column in columns]
    return list(zip(*cells, strict=True)) if cells else [()] * table.length
