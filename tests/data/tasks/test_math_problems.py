"""Mathematical problems with steps, from files of several kinds."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from megatron_rl.data.config import DataConfig
from megatron_rl.data.registry import check_options, make_task, require_targets
from megatron_rl.data.task import Sample, Task
from megatron_rl.errors import InputError

GSM8K = {"question": "Two and two?", "answer": "2+2 = <<2+2=4>>4\n\nand so on.\n#### 1,004"}
MATH = {"problem": "Half of $x$?", "solution": "First halve.\nIt is \\boxed{\\frac{x}{2}}.", "level": 3}
SEELE = {"problem": "p", "answer": "3", "steps": ["one", " two ", "so \\boxed{3}"]}


@pytest.fixture
def load(tmp_path: Path, chat_tokenizer: Any) -> Any:
    def load(rows: list[dict], name: str = "rows.jsonl", **options: Any) -> Task:
        path = tmp_path / name
        path.write_text("\n".join(json.dumps(row) for row in rows))
        return make_task(DataConfig(task="math_problems", path=str(path), **options), 0, chat_tokenizer)

    return load


def test_steps_are_a_column_or_the_lines_of_a_solution(load: Any) -> None:
    assert load([SEELE]).train[0].extra["steps"] == ["one", "two", "so \\boxed{3}"]
    example = load([GSM8K]).train[0]
    assert example.extra["steps"] == ["2+2 = 4", "and so on. \\boxed{1004}"] and example.answer == "1004"
    assert example.target == "2+2 = 4\nand so on. \\boxed{1004}<|im_end|>"
    example = load([MATH]).train[0]
    assert example.extra["steps"] == MATH["solution"].splitlines() and example.answer == r"\frac{x}{2}"
    assert example.target == f"{MATH['solution']}<|im_end|>"
    example = load([{"problem": "p", "answer": "3"}]).train[0]
    assert "steps" not in example.extra and example.target == ""
    with pytest.raises(InputError, match="no target to imitate"):
        require_targets(load([{"problem": "p", "answer": "3"}]))
    renamed = {"problem": "p", "answer": "3", "hints": ["a"], "steps": 4}
    assert load([renamed], columns={"steps": "hints"}).train[0].extra["steps"] == ["a"]
    assert load([SEELE | {"target": "mine"}]).train[0].target == "mine<|im_end|>"


def test_a_text_of_a_csv_is_read_as_json(tmp_path: Path, chat_tokenizer: Any) -> None:
    (tmp_path / "rows.csv").write_text('problem,answer,steps\np,3,"[""one"", ""two""]"\n')
    task = make_task(DataConfig(task="math_problems", path=str(tmp_path / "rows.csv")), 0, chat_tokenizer)
    assert task.train[0].extra["steps"] == ["one", "two"]


@pytest.mark.parametrize("steps", [[], None, "text", ["a", ""], ["a", 1], {"a": 1}])
def test_rows_without_steps_are_an_error_or_left_out(load: Any, steps: object) -> None:
    rows = [SEELE, SEELE | {"steps": steps}]
    with pytest.raises(InputError, match=r"rows.jsonl, row 2, column 'steps': the steps are .* data.bad_rows=drop"):
        load(rows)
    task = load(rows, bad_rows="drop")
    assert len(task.train) == 1
    assert task.notes == {"training rows": 1, "training rows left out, without steps": 1}
    with pytest.raises(InputError, match="no row has steps in its column 'steps'"):
        load(rows[1:], bad_rows="drop")


def test_the_report_is_that_of_mathematics(load: Any) -> None:
    task = load([MATH | {"data_source": "a"}], eval_path="")
    report = pickle.loads(pickle.dumps(task.report))
    assert report(Sample("", r"\boxed{x/2}", r"\frac{x}{2}")) == {"correct": 1.0, "boxed": 1.0}
    assert report(Sample("", "x/2", r"\frac{x}{2}")) == {"correct": 0.0, "boxed": 0.0}


def test_each_source_is_judged_by_itself(load: Any, tmp_path: Path, chat_tokenizer: Any) -> None:
    rows = [SEELE | {"data_source": name} for name in "ab"]
    (tmp_path / "eval.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    task = load([SEELE], eval_path=str(tmp_path / "eval.jsonl"))
    assert task.report(Sample("", r"\boxed{3}", "3", "b")) == {"correct": 1.0, "boxed": 1.0, "correct/b": 1.0}


def test_options_are_those_of_prompt_answer() -> None:
    assert check_options(DataConfig(task="math_problems")) == []
    assert "must have a {column}" in check_options(DataConfig(task="math_problems", template="x"))[0]


def test_the_fingerprint_covers_steps_beside_a_target(load: Any) -> None:
    row = {"question": "Two?", "answer": "2", "target": "so 2", "steps": ["1+1", "=2"]}
    task, other = (load([row | {"steps": steps}] * 2) for steps in (["1+1", "=2"], ["1+1=2"]))
    assert task.train[0].target == other.train[0].target and task.fingerprint() != other.fingerprint()
