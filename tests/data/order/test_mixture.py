"""Several tasks at once."""

import json
import pickle
from collections import Counter

import pytest

from megatron_rl.data.check import check_data
from megatron_rl.data.config import CurriculumConfig, DataConfig
from megatron_rl.data.order.curriculum import ByAccuracy
from megatron_rl.data.order.mixed import make_prompts
from megatron_rl.data.order.mixture import Chained, parts, weights
from megatron_rl.data.registry import held_out, make_task, require_targets
from megatron_rl.data.task import UNBOUNDED, Example, sample_of
from megatron_rl.errors import InputError


@pytest.fixture
def sums(tmp_path):
    lines = [{"question": f"{i} + 1?", "answer": str(i + 1), "level": i} for i in range(5)]
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return str(tmp_path / "sums.jsonl")


def mixture(sums: str, **more) -> DataConfig:
    part = {"task": "prompt_answer", "path": sums, "eval_path": sums, "prompt": "plain", "weight": 1}
    return DataConfig(task="false_belief", mixture={"stories": {"weight": 3}, "sums": part | more})


def test_each_task_has_its_options_and_its_share(sums, chat_tokenizer):
    config = mixture(sums, limit=3)
    assert weights(config) == {"stories": 0.75, "sums": 0.25}
    assert parts(config)["sums"] == DataConfig(task="prompt_answer", path=sums, eval_path=sums, prompt="plain", limit=3)
    task = make_task(config, 0, chat_tokenizer)
    assert len(task.train) == UNBOUNDED and len(task.heldout) == 512 + 3 and held_out(config) is None
    assert task.train[2**62 // 2 + 2].id == "sums/train/3" and task.train[7].id == "stories/train/7"
    first = ["stories/heldout/0", "sums/heldout/1", "stories/heldout/1", "sums/heldout/2", "stories/heldout/2"]
    assert [e.id for e in task.heldout[:5]] == first and task.heldout[-1].id == "stories/heldout/511"
    assert [e.id for e in task.train[2**61 - 1 : 2**61 + 1]] == [f"stories/train/{2**61 - 1}", "sums/train/1"]
    assert [e.data_source for e in task.heldout[:2]] == ["false_belief", "sums"]  # its own, or the task's name
    assert task.notes == {
        "training rows of sums": 3,
        "held-out rows of sums": 3,
        "held-out rows that are trained on too of sums": 3,
    }
    require_targets(task)

    prompts = make_prompts(config, task, 0, steps=5)
    for n in range(1, 40):
        prompts.take(1)
        assert abs(prompts.drawn["stories"] - 0.75 * n) <= 1
    drawn = prompts.take(40)
    assert Counter(e.data_source for e in drawn) == {"false_belief": 30, "sums": 10}
    sums_drawn = [e.id for e in drawn if e.data_source == "sums"]
    assert Counter(sums_drawn[:9]).most_common(1)[0][1] <= 4 and len(set(sums_drawn)) == 3


def test_every_task_judges_its_own(sums, chat_tokenizer):
    task = make_task(mixture(sums), 0, chat_tokenizer)
    report = pickle.loads(pickle.dumps(task.report))
    right = report(sample_of(task.heldout[3], "\\boxed{2}"))
    assert right == {"correct": 1.0, "answered": 1.0, "correct/sums": 1.0}
    story = report(sample_of(task.heldout[0], "no"))
    assert story["correct/false_belief"] == 0.0 and "faithful" in story
    assert task.fingerprint() != make_task(mixture(sums, limit=4), 0, chat_tokenizer).fingerprint()


def test_cursors_of_their_own_survive(sums, chat_tokenizer):
    config = mixture(sums, curriculum={"by": "accuracy", "explore": 0.5}, weight=2)
    task = make_task(config, 0, chat_tokenizer)

    def play(prompts, steps: range) -> list[list[int]]:
        found = []
        for step in steps:
            found.append(prompts.draw(4, step))
            for index in found[-1]:
                prompts.observe(index, index % 3 / 2)
        return found

    whole, first, second = (make_prompts(config, task, 0, steps=5) for _ in range(3))
    assert isinstance(whole.prompts["sums"].curriculum, ByAccuracy) and whole.prompts["stories"].curriculum is None
    expected, before = play(whole, range(9)), play(first, range(4))
    second.restore(json.loads(json.dumps(first.state())))
    second.remember(json.loads(json.dumps(first.history())))
    assert before + play(second, range(4, 9)) == expected
    assert first.history() and all(key.startswith("sums/") for key in first.history())
    assert first.state().keys() == {"drawn/stories", "drawn/sums", "position/stories", "position/sums"}
    other = make_prompts(config, task, 1, steps=5)
    assert other.draw(4) != expected[0]
    other.restore({"position": 0})  # where a run begins
    assert other.state() == dict.fromkeys(other.state(), 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("a.jsonl", "data.mixture.a is 'a.jsonl'; it must hold options, such as {path: a.jsonl, weight: 2}."),
        ({"weight": 0}, "data.mixture.a.weight is 0; it must be a number above 0."),
        ({"weight": "much"}, "data.mixture.a.weight is 'much'"),
        ({"pth": "x.jsonl"}, "data.mixture.a.pth: there is no such option; did you mean path?"),
        ({"limit": "3"}, "data.mixture.a.limit is '3', and must be of the type int."),
        ({"limit": -1}, "data.mixture.a.limit is -1; it must be 0 or more."),
        ({"columns": "x"}, "data.mixture.a.columns is 'x', and must be of the type dict."),
        (
            {"max_prompt_tokens": 9},
            "data.mixture.a.max_prompt_tokens: this is one for all tasks; set data.max_prompt_tok",
        ),
        ({"mixture": {}}, "data.mixture.a.mixture: this is one for all tasks"),
        ({"curriculum": "easy"}, "data.mixture.a.curriculum is 'easy'; it must hold options"),
        ({"curriculum": {"by": "columm"}}, "data.mixture.a.curriculum.by is 'columm'; it must be none, column or acc"),
        ({"curriculum": {"by": "column"}}, "data.mixture.a: data.curriculum.by=column needs data.curriculum.column"),
        ({"task": "false_beleif"}, "data.mixture.a: data.task='false_beleif' is unknown; did you mean false_belief?"),
        ({"task": "multiple_choice", "path": "x.jsonl"}, "data.mixture.a: data.path: the file x.jsonl does not exist."),
    ],
)
def test_what_is_wrong_with_it(options, message):
    (said,) = check_data(DataConfig(task="false_belief", mixture={"a": options, "b": {}}))
    assert message in said


def test_a_task_without_training_examples(sums, chat_tokenizer):
    with pytest.raises(InputError, match=r"data.mixture.sums has no training examples"):
        make_task(mixture(sums, path=""), 0, chat_tokenizer)
    with pytest.raises(
        InputError, match=r"data.mixture.sums: data.curriculum.column=hard: the training example train/1"
    ):
        config = mixture(sums, curriculum={"by": "column", "column": "hard"})
        make_prompts(config, make_task(config, 0, chat_tokenizer), 0, steps=4)
    assert CurriculumConfig().by == "none"


def test_a_column_that_would_be_overwritten_is_refused():
    rows = {"a": [Example("0", "p", "1", extra={"kind": 1})], "b": [Example("0", "p", "1", extra={"task": "addition"})]}
    chained = Chained(rows)
    assert chained[0].extra == {"kind": 1, "task": "a"}
    with pytest.raises(InputError, match=r"data\.mixture\.b: its rows have a column 'task'.*rename the column"):
        chained[1]
