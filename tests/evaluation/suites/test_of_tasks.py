"""Suites that are the held-out rows of a task: mathematics, ToMi, Social IQa, puzzles, stories, a user's file."""

import json
from pathlib import Path

import pytest

from megatron_rl.errors import InputError
from megatron_rl.evaluation.registry import SUITES, card, suite_config
from megatron_rl.evaluation.summary import summarise
from tests.evaluation.suites.asked import records_of, suite_of, write_rows


def test_mathematics_with_several_samples(tmp_path: Path) -> None:
    rows = [{"question": "2+2?", "answer": "two and two\n#### 4"}, {"question": "1/2?", "answer": "half\n#### 0.5"}]
    suite = suite_of("gsm8k", path=write_rows(tmp_path / "g.jsonl", rows), samples=3, temperature=1)
    assert suite.items[0].forms[0].prompt == (
        "2+2?\nReason step by step, and put your final answer within \\boxed{}.\n\nResponse:\n"
    )
    said = {"4": ["\\boxed{5}", "\\boxed{4}", "so \\boxed{4.0}"], "0.5": ["\\boxed{\\frac{1}{2}}", "\\boxed{3}", "3"]}
    found = summarise(suite, records_of(suite, lambda form: said[form.answer]), 3)
    assert found["accuracy"]["mean"] == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert {k: value["mean"] for k, value in found["pass_at"].items()} == pytest.approx(
        {"1": 0.5, "2": (1 + 2 / 3) / 2, "3": 1}
    )
    # 5, 4 and 4.0 are three answers of one vote each, so the first counts; likewise \frac{1}{2}, 3 and none
    assert found["majority_at"]["3"]["mean"] == 0.5
    assert found["unreadable"] == pytest.approx(1 / 6)


def test_groups_of_math(tmp_path: Path) -> None:
    rows = [{"problem": "P?", "solution": "s", "answer": "2", "level": level, "subject": "Algebra"} for level in (1, 5)]
    suite = suite_of("math500", path=write_rows(tmp_path / "m.jsonl", rows))
    assert [item.groups for item in suite.items] == [
        {"level": "1", "subject": "Algebra"},
        {"level": "5", "subject": "Algebra"},
    ]


def test_tomi(tmp_path: Path) -> None:
    path = tmp_path / "tomi.csv"
    path.write_text("story,question,answer,question_type\nAnn left.,Where is it?,pantry,reality\nB.,Q?,box,memory\n")
    suite = suite_of("tomi", path=str(path))
    assert [item.groups["question_type"] for item in suite.items] == ["reality", "memory"]
    found = summarise(suite, records_of(suite, lambda form: "hm <answer> Pantry. </answer>"), 1)
    assert found["by"]["question_type"]["reality"]["mean"] == 1 and found["accuracy"]["mean"] == 0.5


def test_social_iqa(tmp_path: Path) -> None:
    row = {"context": "C.", "question": "Q?", "answerA": "x", "answerB": "y", "answerC": "z", "label": "2"}
    suite = suite_of("social_iqa", path=write_rows(tmp_path / "s.jsonl", [row]), template="qwen-instruct")
    assert suite.items[0].forms[0].prompt.endswith("<|im_start|>assistant\n<think>")
    (right,) = records_of(suite, lambda form: " r </think> <answer> (B) </answer>")
    assert (right["correct"], right["extracted"], right["report"]["format"]) == (1, "B", 1)


def test_temporal_clue_gives_the_share_too(tmp_path: Path) -> None:
    row = {"prompt": "Who?", "solution": {"A": "Mr. Green", "B": "Knife"}, "num_clues": 3}
    suite = suite_of("temporal_clue", path=write_rows(tmp_path / "t.jsonl", [row]))
    found = summarise(suite, records_of(suite, lambda form: "A. Mr. Green\nB. Rope"), 1)
    assert found["accuracy"]["mean"] == 0 and found["measures"]["partial"]["mean"] == 0.5


def test_generated_stories_need_no_file() -> None:
    suite = suite_of("higher_order_belief", limit=10)
    assert [item.groups["order"] for item in suite.items] == ["0", "1", "2", "3", "4"] * 2
    found = summarise(suite, records_of(suite, lambda form: f"<think> . </think> <Answer> {form.answer} </Answer>"), 1)
    assert found["accuracy"]["mean"] == 1 and set(found["by"]["order"]) == set("01234")


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    rows = [{"question": f"{i}?", "answer": str(i), "topic": "xy"[i % 2]} for i in range(4)]
    suite = suite_of("file", path=write_rows(tmp_path / "own.jsonl", rows), by=["topic"])
    found = summarise(suite, records_of(suite, lambda form: f"\\boxed{{{'1' if form.answer == '1' else 7}}}"), 1)
    assert {name: value["mean"] for name, value in found["by"]["topic"].items()} == {"x": 0, "y": 0.5}


def test_languages_of_a_question_are_one_vote(tmp_path: Path) -> None:
    rows = [{"question": f"{word}?", "answer": 12, "id": i} for i in (1, 2) for word in ("two", "zwei", "deux")]
    path = write_rows(tmp_path / "languages.jsonl", rows)
    suite = suite_of("file", path=path, pool="id")
    assert [len(item.forms) for item in suite.items] == [3, 3]
    said = {"1": {"two": "7", "zwei": "12", "deux": "12"}, "2": {"two": "12", "zwei": "5", "deux": "5"}}

    def say(form) -> str:
        item = next(item.id for item in suite.items if form in item.forms)
        return f"<answer>{said[item][form.prompt.partition('?')[0]]}</answer>"

    assert summarise(suite, records_of(suite, say), 1)["accuracy"]["mean"] == 0.5
    rows[0]["answer"] = 13
    with pytest.raises(InputError, match="have different answers"):
        suite_of("file", path=write_rows(tmp_path / "languages.jsonl", rows), pool="id")


def test_a_file_that_no_task_takes(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "own.jsonl", [{"a": 1}])
    with pytest.raises(
        InputError, match=r"are of no form that has questions with answers. Name the task with file.task"
    ):
        suite_of("file", path=path)
    path = write_rows(tmp_path / "own.jsonl", [{"question": "q", "answer": "a"}])
    with pytest.raises(InputError, match="has no column 'topc'"):
        suite_of("file", path=path, by=["topc"])


def test_simpletom(tmp_path: Path) -> None:
    row = {
        "story": "S.",
        "question": "Aware?",
        "choices": {"text": ["Yes", "No"], "label": ["A", "B"]},
        "answerKey": "B",
    }
    for kind in ("mental-state-qa", "behavior-qa", "judgment-qa"):
        write_rows(tmp_path / f"{kind}.jsonl", [row])
    suite = suite_of("simpletom", path=str(tmp_path))
    found = summarise(suite, records_of(suite, lambda form: "He left. [[B]]" if "mental" in form.id else "(A)"), 1)
    assert {k: v["mean"] for k, v in found["by"]["kind"].items()} == {"behavior": 0, "judgment": 0, "mental-state": 1}
    assert found["unreadable"] == pytest.approx(2 / 3)


def test_options_that_cannot_be(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "g.jsonl", [{"question": "q", "answer": "#### 1"}])
    for name, options, said in (
        ("gsm8", {}, "There is no suite 'gsm8'; did you mean gsm8k?"),
        ("xyz", {}, f"There is no suite 'xyz'; there are {', '.join(SUITES)}."),
        ("gsm8k", {"path": file, "limt": 3}, "gsm8k.limt: gsm8k has no such option; did you mean limit?"),
        ("gsm8k", {"path": file, "cot": True}, "gsm8k.cot: gsm8k has no such option"),
        ("gsm8k", {"path": file, "samples": 0}, "gsm8k.samples is 0; it must be 1 or more."),
        ("gsm8k", {"path": file, "samples": True}, "gsm8k.samples is True, and must be of the type int."),
        ("gsm8k", {"path": file, "samples": 4}, "draws the same completion each time: set gsm8k.temperature."),
        ("gsm8k", {"path": "no.jsonl"}, "gsm8k: no.jsonl does not exist. Its test.jsonl is in github.com"),
        ("gsm8k", ["path"], "gsm8k is ['path']; it must hold options"),
    ):
        _, found = suite_config(name, options)
        assert len(found) == 1 and said in found[0], found


@pytest.mark.parametrize("name", SUITES)
def test_every_suite_has_a_card(name: str) -> None:
    known = card(name)
    assert all((known.title, known.source, known.licence, known.protocol, known.training))
    assert json.dumps(known.__dict__)
    assert known.where or name in ("false_belief", "higher_order_belief")
