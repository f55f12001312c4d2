"""Right answers and solutions of files of several kinds."""

import pytest

from megatron_rl.data.files import Table
from megatron_rl.data.rows.answers import read_answers
from megatron_rl.errors import InputError


def table(**cells) -> Table:
    return Table("q.jsonl", cells, len(next(iter(cells.values()))))


def test_the_first_column_of_answers_that_is_there():
    cells = {"ground_truth": ["g"], "reward_model": [{"ground_truth": "r"}], "answer": ["a"], "other": [{"x": 1.0}]}
    for expected, column in (("a", "answer"), ("r", "reward_model.ground_truth"), ("g", "ground_truth")):
        found = read_answers(table(**cells), {})
        assert (found.values, found.column, found.first_missing()) == ([expected], column, 0)
        cells.pop(column.partition(".")[0])
    assert read_answers(table(**cells), {"answer": "other.x"}).values == [1.0]
    with pytest.raises(InputError, match="no column 'answer'"):
        read_answers(table(**cells), {})


def test_what_stands_after_the_last_mark_of_gsm8k():
    found = read_answers(table(answer=["a #### b\nc\n#### 1,234.5 ", "#### -3\n", "## 2"]), {})
    assert found.values == ["1234.5", "-3", None] and found.first_missing() == 3
    assert found.solutions == ["a #### b\nc", "", ""] and "####" in found.missing


def test_a_mark_in_a_few_answers_is_a_part_of_them():
    assert read_answers(table(answer=["#### 1", "2", "3"]), {}).values == ["#### 1", "2", "3"]


def test_solutions_beside_answers_and_instead_of_them():
    cells = {"solution": [r"\boxed{1}, \boxed{\frac{1}{2}}", "none"]}
    found = read_answers(table(**cells), {})
    assert (found.values, found.solutions, found.column) == ([r"\frac{1}{2}", None], cells["solution"], "solution")
    beside = read_answers(table(answer=[0, False], **cells), {})
    assert beside.values == [0, False] and beside.solutions == cells["solution"]
    objects = read_answers(table(solution=[{"A": 1}]), {"answer": "solution"})
    assert (objects.values, objects.solutions) == ([{"A": 1}], [""])


def test_empty_cells_are_no_answers():
    assert read_answers(table(answer=["", " ", None, float("nan"), [], {}, 0]), {}).values == [None] * 6 + [0]
