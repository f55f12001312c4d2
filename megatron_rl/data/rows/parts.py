"""What the tasks that are made from files share: their two parts, prompts that are too long, and what is counted."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import xxhash

from megatron_rl.data.config import DataConfig
from megatron_rl.data.files import Table, read_table
from megatron_rl.data.rows import choices
from megatron_rl.data.task import HELD_OUT, TRAINED_ON, Example, Report
from megatron_rl.data.tokenizer import require_encodable
from megatron_rl.errors import InputError

BENCHMARKS = {  # for evaluation only, say their authors; the columns by which their files are known
    "ToMBench": ({"故事", "问题", "选项A"}, {"能力\nABILITY"}),
}
_TOKENISED_AT_ONCE = 1024  # prompts


@dataclass
class Part:
    """The examples of one file, and how many of its rows are special in some way ("with derived options" -> 12)."""

    examples: list[Example]
    counts: dict[str, int] = field(default_factory=dict)


class Rows:
    """A task whose examples are the rows of files.

    ``report`` takes ``by_source``, with which it judges each data source by itself: done where the held-out examples
    have several.
    """

    def __init__(
        self,
        train: list[Example],
        heldout: list[Example],
        notes: dict[str, int],
        report: Callable[..., dict[str, float]],
    ) -> None:
        self.train, self.heldout, self.notes = train, heldout, notes
        several = len({example.data_source for example in heldout}) > 1
        self.report: Report = partial(report, by_source=True) if several else report

    def fingerprint(self) -> str:
        """Hash of all examples as they are trained on and evaluated."""
        digest = xxhash.xxh3_128()
        for e in (*self.train, *self.heldout):
            answer = (
                e.answer if isinstance(e.answer, str) else f"JSON {json.dumps(e.answer, sort_keys=True, default=str)}"
            )
            digest.update(f"{e.id}\n{e.prompt}\n{e.target}\n{answer}\n".encode())
            if steps := e.extra.get("steps"):  # hints are told from them
                digest.update(f"JSON {json.dumps(steps, default=str)}\n".encode())
        return digest.hexdigest()


def load_parts(
    config: DataConfig, tokenizer: Any, make: Callable[[Table, str], Part]
) -> tuple[list[Example], list[Example], dict[str, int]]:
    """The examples of data.path and of data.eval_path, of which one may be missing, and what is to be said of them.

    Such as "training rows" -> 7473.

    ``make(table, part)`` turns rows into examples, ``part`` being "train" or "heldout". Raises InputError naming file,
    row and column of what cannot be used.
    """
    if not config.path and not config.eval_path:
        raise InputError(f"data.path is empty; data.task={config.task} needs a file or a hub id.")
    train, heldout, wrong = Part([]), Part([]), []
    try:
        if config.path:
            table = read_table(config.path, config.split, config.limit, config.subset)
            if not config.train_on_benchmarks:
                _refuse_benchmark(table)
            train = _fitting(config, table, make(table, "train"), tokenizer)
    except InputError as error:
        wrong.append(str(error))
    try:
        if config.eval_path:
            table = read_table(config.eval_path, config.eval_split, config.limit, config.subset)
            heldout = _fitting(config, table, make(table, "heldout"), tokenizer)
    except InputError as error:
        wrong.append(str(error))
    if wrong:
        raise InputError(" ".join(dict.fromkeys(wrong)))
    trained_on = {example.prompt for example in train.examples}
    heldout.counts[TRAINED_ON] = sum(example.prompt in trained_on for example in heldout.examples)
    notes: dict[str, int] = {}
    for word, part in (("training rows", train), (HELD_OUT, heldout)):
        notes |= {word: len(part.examples)} | {f"{word} {what}": n for what, n in part.counts.items()}
    return train.examples, heldout.examples, {what: n for what, n in notes.items() if n}


def texts(table: Table, column: str) -> list[str]:
    """The cells of a column as texts, missing ones empty. Raises InputError naming a row that has something else."""
    found = []
    for row, cell in enumerate(table.column(column), start=1):
        try:
            found.append(choices.text(cell))
        except ValueError as error:
            raise InputError(f"{table.name}, row {row}, column {column!r}: {error}.") from error
    return found


def benchmark(table: Table) -> str:
    """The name of the benchmark whose authors ask that nobody trains on it, where a table is one; else empty."""
    return next((n for n, marks in BENCHMARKS.items() if any(columns <= set(table.columns) for columns in marks)), "")


def _refuse_benchmark(table: Table) -> None:
    if name := benchmark(table):
        raise InputError(
            f"{table.name} is {name}, which is for evaluation only: its authors ask that nobody trains on it. Give "
            "it as data.eval_path and train on other questions; data.train_on_benchmarks=true does it all the same."
        )


def _fitting(config: DataConfig, table: Table, part: Part, tokenizer: Any) -> Part:
    """The part without the prompts that are too long, which are counted, or an InputError, as data.bad_rows says."""
    rows = [e.id.rpartition("/")[2] for e in part.examples]
    known = ((row, text) for row, e in zip(rows, part.examples, strict=True) for text in (e.prompt, e.target))
    require_encodable(tokenizer, ((f"{table.name}, row {row}", text) for row, text in known))
    prompts, lengths = [e.prompt for e in part.examples], []
    for first in range(0, len(prompts), _TOKENISED_AT_ONCE):
        some = tokenizer(prompts[first : first + _TOKENISED_AT_ONCE], add_special_tokens=False).input_ids
        lengths += [len(ids) for ids in some]
    most = config.max_prompt_tokens
    longer = [row for row, length in enumerate(lengths) if length > most]
    if not longer:
        return part
    said = (
        f"has {lengths[longer[0]]} tokens, more than data.max_prompt_tokens={most}. {len(longer)} of {len(lengths)} "
        f"rows are too long, the longest has {max(lengths)}."
    )
    if config.bad_rows == "error" or len(longer) == len(lengths):
        raise InputError(
            f"{table.name}, row {rows[longer[0]]}: the prompt made from it {said} Shorten or remove them, raise "
            "data.max_prompt_tokens"
            + (", or leave them out with data.bad_rows=drop." if len(longer) < len(lengths) else ".")
        )
    kept = [e for e, length in zip(part.examples, lengths, strict=True) if length <= most]
    return Part(kept, part.counts | {f"left out, longer than {most} tokens": len(longer)})
