"""``megatron-rl data SOURCE``: what it says of files of every form, what it refuses, what it writes."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from megatron_rl.cli import main
from megatron_rl.data.check import check_data
from megatron_rl.data.files import read_table
from megatron_rl.data.rows.kinds import recognise
from megatron_rl.settings.load import load

MESSAGES = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}]
TOMBENCH = {
    "能力\nABILITY": "Belief",
    "STORY": "S.",
    "QUESTION": "Q?",
    "OPTION-A": "a",
    "OPTION-B": "b",
    "答案\nANSWER": "A",
}
HITOM = {"question_order": 2, "deception": False, "story": "1 A is here.", "question": "Where?"}
HITOM |= {"choices": "A. red_box, B. blue_box", "answer": "red_box"}
VERL = {"prompt": MESSAGES[:1], "data_source": "x", "reward_model": {"style": "rule", "ground_truth": "4"}}
SOCIAL = {"context": "C.", "question": "Q?", "answerA": "x", "answerB": "y", "answerC": "z", "label": "3"}
EPISODE = {
    "episode_id": "e1",
    "environment_id": "v",
    "agent_ids": ["a1", "a2"],
    "raw_messages": [
        [
            ["Environment", "Mia", "You are Mia."],
            ["Environment", "Ben", "You are Ben."],
            ["Mia", "Environment", 'said: "Hi."'],
            ["Ben", "Environment", "did nothing"],
        ],
        [
            ["Environment", "Mia", "Turn 1"],
            ["Mia", "Environment", "did nothing"],
            ["Ben", "Environment", 'said: "Ho."'],
        ],
    ],
    "raw_rewards": [[3.5, {"goal": 9}], [2.0, {"goal": 1}]],
}
KINDS = {  # name, use: a row
    ("GSM8K", "prompt_answer"): {"question": "Two and two?", "answer": "2+2=4\n#### 4"},
    ("MATH", "prompt_answer"): {"problem": "P?", "solution": r"\boxed{2}", "level": "Level 3"},
    ("verl", "prompt_answer"): VERL,
    ("prompts with an answer", "prompt_answer"): {"prompt": "Two?", "answer": 2},
    ("pairs", "preference"): {"prompt": "Two?", "chosen": "2", "rejected": "3"},
    ("conversations", "sft"): {"messages": MESSAGES},
    ("prompts with what to imitate", "sft"): {"prompt": "Two?", "completion": "2"},
    ("Hi-ToM", "multiple_choice"): HITOM,
    ("ToMBench", "multiple_choice"): TOMBENCH,
    ("ToM-RL", "multiple_choice"): {"story": "S.", "question": "Q?", "answer": "box", "data_source": "hi_tom"},
    ("questions with options", "multiple_choice"): {
        "story": "S.",
        "question": "Q?",
        "answer": "b",
        "options": ["a", "b"],
    },
    ("Social IQa", "social_iqa"): SOCIAL,
    ("SOTOPIA", "sft"): EPISODE,
    ("problems with steps", "math_problems"): {"problem": "Two?", "answer": "2", "steps": ["1+1=2"]},
}


@pytest.fixture
def write(tmp_path):
    def write(rows, name="rows.jsonl"):
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        return str(tmp_path / name)

    return write


@pytest.mark.parametrize(("name", "use"), KINDS)
def test_forms_are_known_by_their_columns(write, name, use):
    kind = recognise(read_table(write([KINDS[name, use]] * 2), ""))
    assert (kind.name, kind.use) == (name, use)


def test_other_columns_are_not_known(write):
    assert recognise(read_table(write([{"a": 1}]), "")) is None


def test_it_shows_columns_prompt_answer_and_lengths(write, capsys):
    rows = [{"question": f"{'x' * i}?", "answer": f"so\n#### {i}", "hint": "h" if i == 1 else None} for i in (1, 5, 3)]
    assert main(["data", write(rows)]) == 0
    out = capsys.readouterr().out
    for said in [
        "rows.jsonl: 3 rows",
        "column     question: text, such as 'x?'",
        "column     hint: text, 2 empty, such as 'h'",
        "known as   GSM8K: data.task=prompt_answer",
        "  | x?\n  answer     '1'",
        "prompts    2 to 6 characters, median 4",
        "usable     3 rows",
    ]:
        assert said in out


@pytest.mark.parametrize(("name", "use"), [key for key in KINDS if key[0] not in ("SOTOPIA", "ToMBench", "ToM-RL")])
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_what_is_prepared_is_the_same_again(write, tmp_path, capsys, name, use, ending):
    out = tmp_path / f"out.{ending}"
    assert main(["data", write([KINDS[name, use]] * 2), "--out", str(out)]) == 0
    first = capsys.readouterr().out
    assert "written    2 rows" in first
    assert main(["data", str(out)]) == 0
    again = capsys.readouterr().out
    for line in (line for line in first.splitlines() if line.startswith(("  |", "  answer", "  prompts", "  usable"))):
        assert line in again


def test_prepared_columns(write, tmp_path):
    def rows(source, *more):
        (tmp_path / "out.jsonl").unlink(missing_ok=True)
        assert main(["data", write([source]), *more, "--out", str(tmp_path / "out.jsonl")]) == 0
        return read_table(str(tmp_path / "out.jsonl"), "").cells

    assert rows(HITOM)["answer"] == ["A"] and rows(HITOM)["options"] == [["red_box", "blue_box"]]
    assert rows(KINDS["GSM8K", "prompt_answer"])["answer"] == ["4"]
    assert rows({"q": "Two?", "n": "2"}, "data.columns.question=q", "data.columns.answer=n") == {
        "prompt": ["Two?"],
        "answer": ["2"],
    }


def test_what_cannot_be_used_is_said(write, tmp_path, capsys):
    good = {"prompt": "Two?", "answer": "2"}
    for rows, arguments, said in [
        ([good, {"prompt": "Three?"}], [], "row 2, column 'answer': the answer is empty. 1 of 2 rows have none."),
        ([{"a": 1}], [], "its columns, 'a', are of no form that is known"),
        ([good], ["data.prompt=chat"], "has no chat template"),
        ([good], ["data.columns.answer=no"], "has no column 'no'"),
        ([good], ["run.steps=1"], "run.steps=1: only options of data are of use here."),
        ([good], ["data.promt=raw"], "data.promt"),
        ([good], ["data.path=other.jsonl"], "data.path=other.jsonl: the file is named by the command"),
        ([good], ["data.task=false_belief"], "data.task=false_belief makes its own questions and reads no file"),
        ([good], ["data.template=fixed"], "must have a {column} in it"),
        ([good], ["--out", "rows.csv"], "--out rows.csv: the name must end in .jsonl or .parquet."),
        ([{"story": "S.", "question": "Q?", "answer": "x"}], [], "has a column 'story', and the prompt would be"),
        ([{"messages": MESSAGES}, {"messages": MESSAGES[:1]}], [], "row 2, column 'messages'"),
        ([{"question": "Q?", "reply": "x"}], [], "but without 'answer' or 'solution'; or like prompts with what to"),
        ([{"messages": MESSAGES[:1]}] * 2, [], "has the role 'user': a conversation to imitate ends with 'assistant'"),
        ([{"messages": [{"from": "a", "value": "b"}]}] * 2, [], "Column 'messages' is none of messages: row 1 has"),
        (
            [KINDS["problems with steps", "math_problems"] | {"steps": []}],
            [],
            "row 1, column 'steps': the steps are []",
        ),
        ([TOMBENCH], ["--out", str(tmp_path / "o.jsonl")], "is ToMBench, which is for evaluation only"),
        ([SOCIAL | {"label": "0"}], [], "row 1, column 'label': the right answer is '0'"),
        ([KINDS["pairs", "preference"] | {"rejected": "2"}], [], "row 1: chosen and rejected are equal"),
    ]:
        assert main(["data", write(rows), *arguments]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "o.jsonl").exists()
    assert main(["data", write([good, {"prompt": "Three?"}]), "data.bad_rows=drop"]) == 0
    assert "usable     1 rows" in capsys.readouterr().out


def test_select_is_a_command_of_two_words(tmp_path, capsys):
    assert main(["data", "select", str(tmp_path), "--reward-at-least", "1", "--out", str(tmp_path / "x.jsonl")]) == 2
    assert "completions.jsonl does not exist: give the folder of a run" in capsys.readouterr().err


def test_bad_rows_are_named_together(write, capsys):
    rows = [SOCIAL | {"label": label} for label in ("1", "0", "2", "7", "3")]
    assert main(["data", write(rows)]) == 2
    said = capsys.readouterr().err
    assert "2 rows of 5 cannot be used." in said
    assert "row 2, column 'label': the right answer is '0'" in said and "row 4, column 'label'" in said
    assert main(["data", write([SOCIAL | {"label": "x"}] * 14)]) == 2
    said = capsys.readouterr().err
    assert "10 rows or more of 14 cannot be used." in said and "row 10," in said and "row 11," not in said


def test_rows_of_parquet_keep_their_types_where_some_are_bad(tmp_path, capsys):
    table = pyarrow.table({"problem": ["a", "b", "c"], "answer": [1, 2, 3], "steps": [["x"], [], []]})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    assert main(["data", str(tmp_path / "rows.parquet")]) == 2
    said = capsys.readouterr().err
    assert "2 rows of 3 cannot be used." in said and "row 2, column 'steps'" in said and "row 3, column 'steps'" in said


@pytest.mark.parametrize(
    ("row", "given", "words"),
    [
        ({"question": "Two?", "answer": 2}, ["data.limit=1"], ["data.limit=1"]),
        ({"question": "Two?", "answer": 2, "target": "2"}, [], ["sft.steps=100"]),
        ({"story": "S.", "question": "Q?", "answer": "b", "options": ["a", "b"]}, [], ["data.task=multiple_choice"]),
    ],
)
def test_the_command_that_trains_on_them_is_whole(row, given, words, write, capsys, tmp_path):
    path = write([row])
    assert main(["data", path, *given]) == 0
    [said] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  to train   ")]
    assert said.split()[2:] == ["megatron-rl", "train", "grpo.tiny", "model.path=FOLDER", f"data.path={path}", *words]
    config, problems = load("grpo.tiny", said.split()[6:])
    assert problems == [] and check_data(config.data) == []


def test_bad_rows_come_in_their_order_without_counts_of_those_that_are_left(write, capsys):
    rows = [{"prompt": "Two?", "answer": "2"}, {"prompt": "Two?", "answer": ""}, {"prompt": "", "answer": "2"}]
    assert main(["data", write([*rows, {"prompt": "Two?", "answer": ""}])]) == 2
    said = capsys.readouterr().err
    assert [line.split(",")[0] for line in said.splitlines()[1:]] == ["row 2", "row 3", "row 4"]
    assert "rows have none" not in said


def test_a_text_that_lists_no_options(write, capsys):
    row = {"story": "S.", "question": "Q?", "answer": "b", "options": "a,b"}
    assert main(["data", write([row])]) == 2
    assert "row 1, column 'options': 'a,b' is a text that lists no options. Write an option" in capsys.readouterr().err


@pytest.mark.parametrize("row", [TOMBENCH, {"prompt": "Two?", "completion": "2"}])
def test_no_command_trains_on_what_is_not_for_it(row, write, capsys):
    assert main(["data", write([row])]) == 0
    assert "to train" not in capsys.readouterr().out


def test_what_is_odd_is_a_warning(write, capsys):
    rows = [{"id": number // 2, "prompt": f"{number % 3}?", "answer": "2"} for number in range(4)]
    rows[0]["prompt"] = "x" * 40_000
    assert main(["data", write(rows)]) == 0
    said = capsys.readouterr().out
    assert "warning    4 rows share their 'id' with others, such as 0" in said
    assert "warning    1 of 4 prompts have more than 32,768 characters, the longest 40,000 (of usable row 1)" in said
    assert "(40,000 characters in all)" in said and "x" * 5000 not in said
    assert main(["data", write([{"prompt": "Two?", "answer": "2"}] * 3)]) == 0
    assert "warning    2 of 3 prompts are there before" in capsys.readouterr().out


def test_episodes_become_conversations_of_each_side(write, tmp_path, capsys):
    assert main(["data", write([EPISODE]), "--out", str(tmp_path / "sides.jsonl")]) == 0
    assert "for sft.data.path" in capsys.readouterr().out
    kind = recognise(read_table(str(tmp_path / "sides.jsonl"), ""))
    assert (kind.name, kind.use) == ("conversations", "sft")
    mia, ben = map(json.loads, (tmp_path / "sides.jsonl").read_text().splitlines())
    assert [m["content"] for m in mia["messages"]] == ["You are Mia.", 'said: "Hi."']
    assert [m["role"] for m in ben["messages"]] == ["user", "assistant"]
    assert ben["messages"][0]["content"] == 'You are Ben.\nMia said: "Hi."'
    assert (mia["agent"], mia["reward"], ben["reward"], ben["rewards"]) == ("Mia", 3.5, 2.0, {"goal": 1})


def test_rows_are_written_to_a_new_file_in_a_folder_that_exists(write, tmp_path, capsys):
    source = write([KINDS["GSM8K", "prompt_answer"]])
    before = (tmp_path / "rows.jsonl").read_bytes()
    (tmp_path / "link.jsonl").symlink_to("rows.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "completions.jsonl").touch()
    for name, said in {
        source: "exists already; {} are written to a new file only. Name another.",
        str(tmp_path / "link.jsonl"): "exists already",
        str(tmp_path / "none" / "out.jsonl"): "its folder does not exist.",
        str(tmp_path / "folder.jsonl"): "is a folder: name a file.",
    }.items():
        for arguments, what in (
            ([source, "--out"], "rows"),
            (["select", str(tmp_path), "--reward-at-least", "1", "--out"], "rows"),
            (["generate", "temporal_clue"], "puzzles"),
            (["overlap", source, "gsm8k", "--data", source, "--out"], "reports"),
        ):
            assert main(["data", *arguments, name]) == 2
            shown = capsys.readouterr()
            assert said.format(what) in shown.err and name in shown.err and not shown.out
    assert (tmp_path / "rows.jsonl").read_bytes() == before
