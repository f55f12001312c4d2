"""Temporal Clue as a task: made, read from files, written to files; what its report and its checks say."""

import json

import pytest

from megatron_rl.cli import main
from megatron_rl.data.check import check_data
from megatron_rl.data.config import DataConfig, PuzzlesConfig
from megatron_rl.data.registry import held_out, make_task, require_targets, trains_on_files
from megatron_rl.data.task import UNBOUNDED, sample_of
from megatron_rl.data.tasks.temporal_clue import task as clue
from megatron_rl.data.tokenizer import load_tokenizer
from megatron_rl.errors import InputError

SHORT = PuzzlesConfig(suspects="2", weapons="2", rooms="2", motives="0", questions=3, names=3, style="short")
ROWS = [
    {"num_clues": n, "prompt": f"Who did it? ({n})", "solution": {"A": "Mr. Green", "B": "11:30 PM"}} for n in (4, 9, 7)
]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    clue.write_tokenizer(folder)
    return load_tokenizer(folder)


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(ROWS))
    return path


def test_made_puzzles(words):
    config = DataConfig(task="temporal_clue", puzzles=SHORT)
    task = make_task(config, 0, words)
    assert (len(task.train), len(task.heldout), held_out(config)) == (UNBOUNDED, clue.HELDOUT, clue.HELDOUT)
    assert not trains_on_files(config) and check_data(config) == []
    assert {e.prompt for e in task.heldout[:100]}.isdisjoint(e.prompt for e in task.train[:400])
    mistaken = 0
    for split, examples in (("train", task.train[:200]), ("heldout", task.heldout[:50])):
        for example in examples:
            assert example.data_source == "temporal_clue" and example.extra["num_clues"] > 0
            response = example.target.removesuffix(" <eos>")
            assert response != example.target
            found = task.report(sample_of(example, response))
            assert found["format"] == 1 and (found["partial"] == 1) == (found["correct"] == 1)
            mistaken += found["correct"] < 1
            assert split == "train" or found["correct"] == 1
    assert 0.65 < mistaken / 200 < 0.85
    require_targets(task)
    again = make_task(config, 0, words)
    assert again.train[7] == task.train[7] and again.fingerprint() == task.fingerprint()
    assert make_task(config, 1, words).fingerprint() != task.fingerprint()


def test_prompts_that_are_too_long(words):
    short = DataConfig(task="temporal_clue", puzzles=SHORT, max_prompt_tokens=80)
    assert all(len(e.prompt.split()) <= 80 for e in make_task(short, 0, words).train[:50])
    with pytest.raises(InputError, match=r"data.max_prompt_tokens is 10, and 100 puzzles of data.puzzles have"):
        make_task(DataConfig(task="temporal_clue", puzzles=SHORT, max_prompt_tokens=10), 0, words)


def test_rows_of_a_file(rows, chat_tokenizer):
    config = DataConfig(task="temporal_clue", path=str(rows), eval_path=str(rows))
    task = make_task(config, 0, chat_tokenizer)
    assert trains_on_files(config) and held_out(config) is None
    assert [e.extra for e in task.train] == [{"num_clues": 4}, {"num_clues": 9}, {"num_clues": 7}]
    assert task.train[1].answer == ROWS[1]["solution"] and "Who did it? (9)" in task.train[1].prompt
    gold = task.report(sample_of(task.heldout[0], "A. Mr. Green\nB. 11:30 PM"))
    assert gold == {"correct": 1.0, "partial": 1.0, "format": 1.0}
    assert task.report(sample_of(task.heldout[0], "A. mr. green")) == {"correct": 0.0, "partial": 0.5, "format": 0.0}


def test_made_for_training_and_read_for_evaluation(rows, chat_tokenizer):
    config = DataConfig(task="temporal_clue", eval_path=str(rows), limit=5, max_prompt_tokens=4096)
    task = make_task(config, 0, chat_tokenizer)
    assert (len(task.train), len(task.heldout), held_out(config)) == (5, 3, None)
    assert "the clues" in task.train[0].prompt and not trains_on_files(config)
    assert task.fingerprint() == make_task(config, 0, chat_tokenizer).fingerprint()


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"prompt": "Who?", "solution": {}},
            "row 1, column 'solution': the solution is {}. It must be an object of let",
        ),
        ({"prompt": "Who?", "solution": "Green"}, "row 1, column 'solution': the solution is 'Green'."),
        ({"prompt": "Who?", "solution": {"A": 3}}, "row 1, column 'solution': the solution is"),
        ({"prompt": "", "solution": {"A": "x"}}, "row 1, column 'prompt': the prompt is ''."),
        ({"prompt": "Who?"}, "has no column 'solution'"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path, chat_tokenizer, row, said):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    with pytest.raises(InputError) as error:
        make_task(DataConfig(task="temporal_clue", path=str(tmp_path / "rows.jsonl")), 0, chat_tokenizer)
    assert said in str(error.value)


def test_tokenizers_that_do_not_fit(words, chat_tokenizer):
    with pytest.raises(InputError, match=r"data.puzzles.style=short is for models that start from model.architecture"):
        make_task(DataConfig(task="temporal_clue", puzzles=SHORT), 0, chat_tokenizer)
    with pytest.raises(
        InputError, match=r"cannot encode a puzzle .* one of words alone takes data.puzzles.style=short"
    ):
        make_task(DataConfig(task="temporal_clue", prompt="plain"), 0, words)


def test_check(monkeypatch):
    unsolvable = DataConfig(task="temporal_clue", puzzles=PuzzlesConfig(rooms="1"))
    assert any("has no solution" in said for said in check_data(unsolvable))
    [said] = check_data(DataConfig(task="temporal_clue", puzzles=SHORT, prompt="chat"))
    assert "leave data.prompt=auto" in said
    monkeypatch.setitem(__import__("sys").modules, "ortools.sat.python.cp_model", None)
    [said] = check_data(DataConfig(task="temporal_clue"))
    assert "pip install megatron-rl[puzzles]" in said


def test_written_to_a_file_and_read_again(tmp_path, capsys, chat_tokenizer):
    one, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
    sizes = ["data.puzzles.suspects=2", "data.puzzles.rooms=2-3"]
    assert main(["data", "generate", "temporal_clue", str(one), "count=6", *sizes]) == 0
    assert "6 puzzles in" in capsys.readouterr().out
    assert main(["data", "generate", "temporal_clue", str(other), "count=4", "processes=2", *sizes]) == 0
    lines = one.read_text().splitlines()
    assert other.read_text().splitlines() == lines[:4]
    assert set(json.loads(lines[0])) == {"num_clues", "prompt", "solution", "target"}
    config = DataConfig(task="temporal_clue", path=str(one), max_prompt_tokens=4096)
    task = make_task(config, 0, chat_tokenizer)
    for example, line in zip(task.train, lines, strict=True):
        assert task.report(sample_of(example, json.loads(line)["target"]))["correct"] == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["x.csv"], "the name must end in .jsonl"),
        (["x.jsonl", "count=0"], "count=0: it must be a whole number, 1 or more."),
        (["x.jsonl", "many=2"], "'many' is none of count=N, seed=N, processes=N"),
        (["x.jsonl", "split=test"], "'split=test' is none of"),
        (["x.jsonl", "data.puzzles.rooms=1"], "has no solution"),
        (["x.jsonl", "data.puzzle.rooms=2"], "did you mean"),
    ],
)
def test_what_cannot_be_written(arguments, said, capsys):
    assert main(["data", "generate", "temporal_clue", *arguments]) == 2
    assert said in capsys.readouterr().err
