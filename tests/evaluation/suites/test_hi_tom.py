"""Hi-ToM: answers that come first, accuracy by order, joint accuracy."""

from pathlib import Path

import pytest

from megatron_rl.errors import InputError
from megatron_rl.evaluation.summary import summarise
from tests.evaluation.suites.asked import records_of, suite_of, write_rows

CHOICES = "A. red_box, B. blue_crate, C. green_bottle"


def row(order: int, sample: int, answer: str = "blue_crate", way: str = "VP", deception: bool = False) -> dict:
    head = "Read the following story and answer the multiple-choice question. Please …\nStory:\n" if way == "VP" else ""
    return {
        "prompting_type": way,
        "deception": deception,
        "story_length": 1,
        "question_order": order,
        "sample_id": sample,
        "story": f"{head}1 Ann entered the hall.\n2 The pear is in the red_box.\n\n",
        "question": "Where is the pear really?",
        "choices": CHOICES,
        "answer": answer,
    }


@pytest.fixture
def file(tmp_path: Path) -> str:
    rows = [row(order, 20 * order + story) for order in range(3) for story in range(2)]
    rows += [row(0, 100, way="CoTP"), row(0, 60, deception=True)]
    return write_rows(tmp_path / "hitom.jsonl", rows)


def test_prompts(file: str) -> None:
    suite = suite_of("hi_tom", path=file)
    assert len(suite.items) == 7
    form = suite.items[0].forms[0]
    assert "Story:\n1 Ann entered the hall.\n2 The pear is in the red_box.\nQuestion: Where" in form.prompt
    assert form.prompt.count("Story:") == 1 and "without explanations" in form.prompt
    assert form.answer == "B" and f"Choices: {CHOICES}\n\nNote: " in form.prompt
    (cot,) = suite_of("hi_tom", path=file, cot=True).items
    assert "Think step-by-step" in cot.forms[0].prompt


def test_joint_accuracy_asks_for_all_lower_orders_of_the_story(file: str) -> None:
    suite = suite_of("hi_tom", path=file)
    # (order, story) that are answered right; story 2 is the one with a lie
    right = {("0", 0), ("1", 0), ("2", 0), ("1", 1), ("2", 1), ("0", 2)}

    def say(form) -> str:
        item = next(item for item in suite.items if item.forms[0] is form)
        story = {"no/1/0": 0, "no/1/1": 1, "yes/1/0": 2}[form.extra["set"]]
        return "B. blue_crate, for Ann left" if (item.groups["order"], story) in right else "red_box"

    found = summarise(suite, records_of(suite, say), 1)
    assert found["accuracy"]["mean"] == pytest.approx(6 / 7)
    assert {order: value["mean"] for order, value in found["by"]["order"].items()} == pytest.approx(
        {"0": 2 / 3, "1": 1, "2": 1}
    )
    joint = {name: (value["mean"], value["n"]) for name, value in found["measures"].items()}
    assert joint == {"joint_order_0": (pytest.approx(2 / 3), 3), "joint_order_1": (0.5, 2), "joint_order_2": (0.5, 2)}
    assert found["by"]["deception"]["yes"] == {"mean": 1, "low": 1, "high": 1, "n": 1}


def test_the_answer_comes_first(file: str) -> None:
    suite = suite_of("hi_tom", path=file)
    for text, right in {
        "blue_crate. Ann saw the red_box": 1,
        "B": 1,
        "Answer: B. blue_crate": 1,
        "<think>red_box?</think>\nB. blue_crate": 1,
        "A. red_box, not the blue_crate": 0,
        "It cannot be known.": 0,
    }.items():
        assert records_of(suite, lambda form, text=text: text)[0]["correct"] == right, text


def test_bad_rows(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"row 1: the answer 'sofa' must be one of its choices"):
        suite_of("hi_tom", path=write_rows(tmp_path / "h.jsonl", [row(0, 0, "sofa")]))
    with pytest.raises(InputError, match=r"no rows of prompting_type CoTP: set hi_tom.cot otherwise"):
        suite_of("hi_tom", cot=True, path=write_rows(tmp_path / "h.jsonl", [row(0, 0)]))
