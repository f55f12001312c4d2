"""Which examples are for which step."""

import json

import pytest

from megatron_rl.data.config import CurriculumConfig, DataConfig
from megatron_rl.data.order.curriculum import ByAccuracy, ByColumn, difficulty
from megatron_rl.data.order.mixed import make_prompts
from megatron_rl.data.prompts import Prompts
from megatron_rl.data.registry import make_task
from megatron_rl.data.task import Example
from megatron_rl.data.tasks.false_belief import false_belief
from megatron_rl.errors import InputError

LEVELS = [
    Example(str(i), "", "", extra={"level": f"Level {1 + i % 5}", "more": {"steps": 5 - i % 5}}) for i in range(20)
]


def config(**options):
    return CurriculumConfig(by="column", column="level", **options)


def test_the_share_grows_steadily_or_in_jumps():
    linear = ByColumn({}, config(start=0.2, until=0.5), steps=100)
    assert [round(linear.share(s), 6) for s in (0, 10, 25, 50, 99)] == [0.2, 0.36, 0.6, 1.0, 1.0]
    steps = ByColumn({}, config(schedule="step", start=0.25, stages=3), steps=90)
    assert [round(steps.share(s), 6) for s in (0, 29, 30, 60, 89, 90)] == [0.25, 0.25, 0.5, 0.75, 0.75, 1.0]


@pytest.mark.parametrize(("column", "hard"), [("level", "high"), ("more.steps", "low")])
def test_easy_ones_come_first_and_each_once_in_an_epoch(column, hard):
    values = {i: difficulty(e, column) for i, e in enumerate(LEVELS)}
    curriculum = ByColumn(values, CurriculumConfig(by="column", column=column, hard=hard, start=0.2), steps=10)
    prompts = Prompts(LEVELS, 3, True, curriculum=curriculum)
    first = prompts.take(12, step=0)
    assert {e.extra["level"] for e in first} == {"Level 1"}
    assert [sorted(e.id for e in first[i : i + 4]) for i in (0, 4, 8)] == [sorted(["0", "5", "10", "15"])] * 3
    half = prompts.take(200, step=5)  # 0.6 of the examples
    assert {e.extra["level"] for e in half} == {"Level 1", "Level 2", "Level 3"}
    late = [e.id for e in Prompts(LEVELS, 3, True, curriculum=curriculum).take(40, step=10)]
    assert late == [e.id for e in Prompts(LEVELS, 3, True).take(40)]  # as if there were none


def test_ties_are_cut_by_the_order_of_the_file():
    curriculum = ByColumn({i: 1.0 for i in range(10)}, config(start=0.3), steps=10)
    assert [i for i in range(10) if curriculum.takes(i, 0, 0)] == [0, 1, 2]


def test_right_now_and_then_goes_first():
    curriculum = ByAccuracy(CurriculumConfig(by="accuracy", low=0.2, high=0.8, explore=0.0), seed=0)
    prompts = Prompts(LEVELS, 0, False, curriculum=curriculum)
    assert prompts.draw(20) == list(range(20))  # none is known yet
    for index in range(20):
        prompts.observe(index, (0.0, 0.5, 1.0, 0.2)[index % 4])
    assert prompts.draw(10) == [i for i in range(20) if i % 4 in (1, 3)]
    assert prompts.draw(12) == [1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 0, 2]  # then those that were left out
    prompts.observe(0, 1.0)
    assert curriculum.running[0] == 0.5  # the mean of the one before and of the newest
    prompts.position = 20
    assert prompts.draw(3) == [0, 1, 3]


def test_others_are_explored_by_a_share():
    curriculum = ByAccuracy(CurriculumConfig(by="accuracy", low=0.2, high=0.8, explore=0.25), seed=1)
    curriculum.observe(0, 0.0)
    taken = [curriculum.takes(0, place, 0) for place in range(4000)]
    assert abs(sum(taken) / 4000 - 0.25) < 0.03
    assert taken == [curriculum.takes(0, place, 0) for place in range(4000)]


def test_a_restored_curriculum_goes_on_where_it_was():
    def made() -> Prompts:
        return Prompts(LEVELS, 5, True, curriculum=ByAccuracy(CurriculumConfig(by="accuracy", explore=0.3), seed=5))

    def play(prompts: Prompts, steps: range) -> list[list[int]]:
        found = []
        for step in steps:
            found.append(prompts.draw(6, step))
            for index in found[-1]:
                prompts.observe(index, index * 7 % 11 / 10)
        return found

    whole, first, second = made(), made(), made()
    expected = play(whole, range(12))
    before = play(first, range(5))
    second.restore(json.loads(json.dumps(first.state())))
    second.remember(json.loads(json.dumps(first.history())))
    assert before + play(second, range(5, 12)) == expected


@pytest.mark.parametrize("value", [None, "hard", "1 or 2", float("nan")])
def test_a_row_without_a_number(value):
    with pytest.raises(
        InputError, match=r"data.curriculum.column=level: the training example t/3 has .* Its columns: le"
    ):
        difficulty(Example("t/3", "", "", extra={"level": value}), "level")


def test_a_column_of_a_file_of_choices(tmp_path, chat_tokenizer):
    """What nothing else needs does not go into ``extra``, but for this column."""
    rows = [
        {"story": f"s{i}", "question": "q?", "options": ["x", "y"], "answer": "x", "difficulty": 9 - i, "note": "n"}
        for i in range(10)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = DataConfig(path=str(tmp_path / "rows.jsonl"), eval_path=str(tmp_path / "rows.jsonl"), prompt="plain")
    assert make_task(data, 0, chat_tokenizer).train[0].extra.keys() == {"story", "question", "options"}
    data.curriculum = CurriculumConfig(by="column", column="difficulty", start=0.3)
    task = make_task(data, 0, chat_tokenizer)
    assert task.train[0].extra.keys() == {"story", "question", "options", "difficulty"}
    assert "difficulty" not in task.heldout[0].extra
    drawn = make_prompts(data, task, 0, steps=10).take(3, step=0)
    assert sorted(e.id for e in drawn) == ["train/10", "train/8", "train/9"]
    data.curriculum.column = "hardness"
    with pytest.raises(InputError, match=r"has no column 'hardness' \(data.curriculum.column\)"):
        make_task(data, 0, chat_tokenizer)


def test_what_a_task_cannot_do():
    for by in ("column", "accuracy"):
        data = DataConfig(curriculum=CurriculumConfig(by=by, column="kind"))
        with pytest.raises(InputError, match=r"without end: bound it with data.limit"):
            make_prompts(data, false_belief(0), 0, steps=3)
        make_prompts(data, false_belief(0), 0)  # the warm start has none
    data.curriculum.column, data.curriculum.by, data.limit = "false_belief", "column", 50
    task = false_belief(0, 50)
    drawn = make_prompts(data, task, 0, steps=10).take(10, step=0)
    assert not any(e.extra["false_belief"] for e in drawn)
