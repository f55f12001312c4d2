"""Right answers and solutions, out of files of several kinds."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatron_rl.data.answers.exact_answer import boxed
from megatron_rl.data.files import Table

ANSWER_COLUMNS = ("answer", "reward_model.ground_truth", "ground_truth")  # the first that is there
_FINAL = re.compile(r"([\s\S]*?)\s*####[ \t]*(\S[^\n]*)")


@dataclass(frozen=True)
class Answers:
    """One per row."""

    values: list[Any]  # of any type; None where the row has none
    solutions: list[str]  # "" where the row has none
    column: str  # where the answers stand
    missing: str  # what is wrong with a row that has none

    def first_missing(self) -> int:
        """The first row without an answer, counted from 1; 0 when every row has one."""
        return next((row for row, value in enumerate(self.values, start=1) if value is None), 0)


def read_answers(table: Table, renamed: Mapping[str, str]) -> Answers:
    r"""The answers as the file has them, or, where that is how it is written, what stands after GSM8K's ``####`` or in
    the last ``\boxed{}`` of the solution. Raises InputError when there is neither answer nor solution."""
    column = next((c for name in ANSWER_COLUMNS if (c := table.find(name, renamed))), None)
    solution = table.find("solution", renamed)
    told = table.column(solution) if solution and solution != column else [""] * table.length
    solutions = [text if isinstance(text, str) else "" for text in told]
    if column is None and solution and any(found := [boxed(text) for text in solutions]):
        return Answers([answer or None for answer in found], solutions, solution, r"has no \boxed{}")
    column = column or table.require("answer", renamed)
    values = [_value(cell) for cell in table.column(column)]
    finals = [_FINAL.fullmatch(value) if isinstance(value, str) else None for value in values]
    if 2 * sum(final is not None for final in finals) > len(finals):
        last = [re.sub(r"(?<=\d),(?=\d{3}\b)", "", final[2].strip()) if final else None for final in finals]
        return Answers(last, [final[1] if final else "" for final in finals], column, "does not end in #### n")
    return Answers(values, solutions, column, "is empty")


def _value(cell: Any) -> Any:
    cell = cell.strip() if isinstance(cell, str) else cell
    return None if cell != cell or cell in ("", [], {}) else cell
