"""Mathematical problems: rows as those of ``prompt_answer``, judged as mathematics, with solutions in steps.

The steps of a solution are the column ``steps``, a list of texts; else the lines of its solution (GSM8K's without what
its calculator was told, ``<<48/2=24>>``), the answer boxed at the end of the last. They lie in
``Example.extra["steps"]``, where hints are taken from (``rollout.strategy=hinted``). A row without a ``target`` has its
steps, and the answer in a box, as one.
"""

import json
import re
from dataclasses import replace
from typing import Any

from megatron_rl.data.answers.math_answer import judge, missing
from megatron_rl.data.config import DataConfig
from megatron_rl.data.rows.parts import Rows
from megatron_rl.data.task import Example, Sample
from megatron_rl.data.tasks import prompt_answer
from megatron_rl.data.tokenizer import ended
from megatron_rl.errors import InputError

COLUMNS = (*prompt_answer.COLUMNS, "steps")
_CALCULATOR = re.compile(r"<<[^<>\n]*>>")


def report(sample: Sample, by_source: bool = False) -> dict[str, float]:
    """``correct``: the last box holds the answer; ``boxed``: there is one. ``by_source``: as in ``prompt_answer``."""
    correct, answered = judge(sample.response, sample.answer)
    found = {"correct": float(correct), "boxed": float(answered)}
    if by_source:
        found[f"correct/{sample.data_source}"] = found["correct"]
    return found


def make_math_problems(config: DataConfig, seed: int, tokenizer: Any) -> Rows:
    """Reads and checks every row of data.path and data.eval_path; raises InputError naming file, row and column."""
    rows = prompt_answer.make_prompt_answer(config, seed, tokenizer)
    notes, column = dict(rows.notes), config.columns.get("steps", "steps")
    parts: list[list[Example]] = []
    for word, path, examples in (
        ("training rows", config.path, rows.train),
        ("held-out rows", config.eval_path, rows.heldout),
    ):
        kept = [with_steps for e in examples if (with_steps := _with_steps(e, path, column, config, tokenizer))]
        if len(kept) < len(examples):
            notes[word] = len(kept)
            notes[f"{word} left out, without steps"] = len(examples) - len(kept)
        if examples and not kept:
            raise InputError(f"{path}: no row has steps in its column {column!r}.")
        parts.append(kept)
    return Rows(parts[0], parts[1], notes, report)


def check_options(config: DataConfig) -> list[str]:
    """What is wrong with the options, and a package that is not there."""
    lacking = missing()
    return prompt_answer.check_options(config) + ([f"data.task=math_problems: {lacking}"] if lacking else [])


def lines(solution: str) -> list[str]:
    """A solution's lines, without empty ones and GSM8K's calculator."""
    return [line.strip() for line in _CALCULATOR.sub("", solution).splitlines() if line.strip()]


def _with_steps(example: Example, path: str, column: str, config: DataConfig, tokenizer: Any) -> Example | None:
    """The same with its steps, where it has a solution; None: it is to be left out."""
    extra = {name: cell for name, cell in example.extra.items() if name != column}
    if column not in example.extra:
        steps = lines(str(extra.get("solution", "")))
        if not steps:
            return example
        if "\\boxed" not in steps[-1]:  # who is told all of it is told the answer
            steps[-1] += f" \\boxed{{{example.answer}}}"
    else:
        read = _steps(example.extra[column])
        if read is None:
            if config.bad_rows == "drop":
                return None
            raise InputError(
                f"{path}, row {example.id.rpartition('/')[2]}, column {column!r}: the steps are "
                f"{example.extra[column]!r:.100}; they must be a list of one or more texts. Leave such rows out with "
                "data.bad_rows=drop."
            )
        steps = read
    told = "".join(f"{step}\n" for step in steps)
    last = "" if "\\boxed" in steps[-1] else f"\\boxed{{{example.answer}}}"
    target = example.target or ended((told + last).rstrip(), tokenizer)
    return replace(example, extra=extra | {"steps": steps}, target=target)


def _steps(cell: Any) -> list[str] | None:
    """A cell as steps; None when it is none. A text is read as JSON: csv files have nothing else."""
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except ValueError:
            return None
    if not isinstance(cell, list | tuple) or not cell:
        return None
    return [step.strip() for step in cell] if all(isinstance(s, str) and s.strip() for s in cell) else None
