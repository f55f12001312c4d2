"""Which examples there are."""

import json

import numpy as np
import pytest

from megatron_rl.data.config import DataConfig, SelectionConfig
from megatron_rl.data.order.mixed import make_prompts
from megatron_rl.data.order.selection import rank_by_accuracy_std, select
from megatron_rl.data.rows.parts import Rows
from megatron_rl.data.task import Example
from megatron_rl.data.tasks.false_belief import false_belief
from megatron_rl.errors import InputError

HISTORY = {"0": [1, 1, 1], "1": [0, 0, 0.5, 1], "2": [0, 0, 0, 0], "3": [0, 1, 0, 1], "4": [0.5, 0.25]}
ROWS = [Example(f"train/{i + 1}", f"p{i}", "", extra={"info": {"index": (3 * i) % 5}}) for i in range(6)]


@pytest.fixture
def history(tmp_path):
    (tmp_path / "history.json").write_text(json.dumps(HISTORY))
    return str(tmp_path / "history.json")


def test_known_values():
    assert np.std([0, 1, 0, 1]) == 0.5 and np.std([0, 0, 0.5, 1]) == pytest.approx(0.414578, abs=1e-6)
    assert rank_by_accuracy_std(HISTORY) == ["3", "1", "4", "0", "2"]
    assert rank_by_accuracy_std({"a": [], "b": [1, 1], "c": [0, 1]}) == ["c", "a", "b"]


def test_rows_are_numbered_from_zero_or_named_by_a_column(history):
    assert select(ROWS, SelectionConfig(rank_by_accuracy_std=history), 1).tolist() == [3, 1, 4, 0, 2, 5]
    named = select(ROWS, SelectionConfig(rank_by_accuracy_std=history, key="info.index", count=2), 1)
    assert [ROWS[i].extra["info"]["index"] for i in named] == [3, 1]
    dropped = [ROWS[i] for i in (0, 3, 4)]  # of rows that were left out, ids tell
    assert select(dropped, SelectionConfig(rank_by_accuracy_std=history), 1).tolist() == [1, 2, 0]
    assert select(ROWS, SelectionConfig(count=2)).tolist() == [0, 1] and select(ROWS, SelectionConfig()) is None


def rows_task() -> Rows:
    return Rows(ROWS, [], {}, lambda sample: {"correct": 0.0})


def test_one_example_fills_every_batch(history):
    selection = SelectionConfig(rank_by_accuracy_std=history)
    prompts = make_prompts(DataConfig(selection=selection, repeat_to_batch=1), rows_task(), 0, steps=9)
    assert {e.id for _ in range(3) for e in prompts.take(128)} == {"train/4"}
    two = make_prompts(DataConfig(repeat_to_batch=2), rows_task(), 0, steps=9)
    assert [e.id for e in two.take(5)] == ["train/1", "train/2", "train/1", "train/2", "train/1"]
    state = two.state()
    assert [e.id for e in two.take(2)] == ["train/2", "train/1"]
    two.restore(state)
    assert [e.id for e in two.take(1)] == ["train/2"]


def test_a_selection_is_shuffled_as_any_file(history):
    prompts = make_prompts(DataConfig(selection=SelectionConfig(history, count=3)), rows_task(), 4, steps=9)
    drawn = [e.id for e in prompts.take(30)]
    assert all(sorted(drawn[i : i + 3]) == ["train/2", "train/4", "train/5"] for i in range(0, 30, 3))
    assert len({tuple(drawn[i : i + 3]) for i in range(0, 30, 3)}) > 1


def test_a_generator(history):
    endless = false_belief(0).train
    assert select(endless, SelectionConfig(count=3)).tolist() == [0, 1, 2]
    with pytest.raises(InputError, match=r"bound the task with data.limit"):
        select(endless, SelectionConfig(rank_by_accuracy_std=history))
    assert select(false_belief(0, 4).train, SelectionConfig(rank_by_accuracy_std=history)).tolist() == [3, 1, 0, 2]
    drawn = make_prompts(DataConfig(repeat_to_batch=2), false_belief(0), 0, steps=1).take(4)
    assert [e.id for e in drawn] == ["train/0", "train/1"] * 2


def test_a_tier_is_what_lies_between_two_numbers_of_a_column(history):
    rows = [Example(f"train/{i + 1}", "", "", extra={"level": f"Level {1 + i % 5}"}) for i in range(10)]
    assert select(rows, SelectionConfig(column="level", least=3)).tolist() == [2, 3, 4, 7, 8, 9]
    assert select(rows, SelectionConfig(column="level", least=1, most=1)).tolist() == [0, 5]
    assert select(rows, SelectionConfig(column="level", most=4, count=3)).tolist() == [0, 1, 2]
    ranked = SelectionConfig(rank_by_accuracy_std=history, column="level", least=2, most=4)
    assert select(rows, ranked, 1).tolist() == [3, 1, 2, 6, 7, 8]
    assert select(ROWS, SelectionConfig(column="info.index", least=3)).tolist() == [1, 3]
    with pytest.raises(
        InputError, match=r"no training example has a number from 6 to inf there; theirs go from 1 to 5"
    ):
        select(rows, SelectionConfig(column="level", least=6))
    with pytest.raises(InputError, match=r"data.selection.column=x: the training example train/1 has no such column"):
        select(rows, SelectionConfig(column="x", least=6))
    with pytest.raises(InputError, match=r"data.selection.column needs examples that can be counted"):
        select(false_belief(0).train, SelectionConfig(column="x", least=6))


def test_the_warm_start_sees_all_examples():
    assert len({e.id for e in make_prompts(DataConfig(repeat_to_batch=1), rows_task(), 0).take(6)}) == 6


def test_bad_files(tmp_path):
    file = tmp_path / "h.json"
    for content in ("[]", "{}", '{"a": 1}', '{"a": ["x"]}', '{"a": [NaN]}'):
        file.write_text(content)
        with pytest.raises(InputError, match=r"must be an object of lists of accuracies"):
            select(ROWS, SelectionConfig(rank_by_accuracy_std=str(file)))
    file.write_text('{"x": [0, 1]}')
    with pytest.raises(InputError, match=r"has the names x, …, and no example has one of them; theirs are 0, 1, 2"):
        select(ROWS, SelectionConfig(rank_by_accuracy_std=str(file)), 1)
    with pytest.raises(InputError, match=r"repeat_to_batch is 7, and there are 6 training examples"):
        make_prompts(DataConfig(repeat_to_batch=7), rows_task(), 0, steps=1)
