"""EmoBench: both letters of EU, one of EA, as the authors' scripts read them."""

from pathlib import Path

import pytest

from megatron_rl.errors import InputError
from megatron_rl.evaluation.summary import summarise
from tests.evaluation.suites.asked import records_of, suite_of, write_rows

EA = {
    "qid": "1",
    "language": "en",
    "category": "Personal-Others",
    "question type": "Action",
    "scenario": "Sue's brother is bullied.",
    "subject": "Sue",
    "choices": ["Wait", "Tell", "Shout", "Talk"],
    "label": "Talk",
}
EU = {
    "qid": "1",
    "language": "en",
    "coarse_category": "complex_emotions",
    "finegrained_category": "emotion_transition",
    "scenario": "The cake fell, and it was good.",
    "subject": "Dora",
    "emotion_choices": ["Delight", "Anger"],
    "emotion_label": "Anger",
    "cause_choices": ["It fell", "It was good"],
    "cause_label": "It fell",
}


@pytest.fixture
def folder(tmp_path: Path) -> str:
    chinese = {"language": "zh", "qid": "2", "category": "个人", "question type": "行动"}
    write_rows(tmp_path / "EA.jsonl", [EA, EA | {"qid": "3", "category": "Social-Self"}, EA | chinese])
    write_rows(tmp_path / "EU.jsonl", [EU, EU | {"qid": "4", "emotion_label": "Delight"}])
    return str(tmp_path)


def test_prompts_and_answers(folder: str) -> None:
    suite = suite_of("emobench", path=folder)
    assert [item.id for item in suite.items] == ["EA/en/1", "EA/en/3", "EU/en/1", "EU/en/4"]
    assert [item.forms[0].answer for item in suite.items] == ["D", "D", "B/A", "A/A"]
    prompt = suite.items[0].forms[0].prompt
    assert "what is the most effective Action for Sue?" in prompt and "A) Wait\nB) Tell" in prompt
    assert '"answer"' in prompt and "reasoning" not in prompt
    assert '"reasoning"' in suite_of("emobench", path=folder, cot=True).items[0].forms[0].prompt
    chinese = suite_of("emobench", path=folder, language="zh").items
    assert len(chinese) == 1 and "Sue最有效的行动是什么？" in chinese[0].forms[0].prompt


def test_scores(folder: str) -> None:
    suite = suite_of("emobench", path=folder)
    said = {
        "EA/en/1": '```json\n{"answer": "D"}\n```',
        "EA/en/3": '<think>{"answer": "A"}</think>{"answer": "D"}',
        "EU/en/1": 'Here: ```json\n{"reasoning": "…", "answer_q1": "B", "answer_q2": "A"}\n```',
        "EU/en/4": '{"answer_q1": "A", "answer_q2": "B"}',  # the emotion alone is right
    }
    found = summarise(suite, records_of(suite, lambda form: said[form.id]), 1)
    assert found["accuracy"]["mean"] == 0.75 and found["unreadable"] == 0
    assert {name: value["mean"] for name, value in found["by"]["task"].items()} == {"EA": 1, "EU": 0.5}
    assert found["by"]["category"]["EU: complex_emotions"]["n"] == 2


@pytest.mark.parametrize(
    "text",
    ["D", "{'answer': 'D'}", '{"answer": "D) Talk"}', '{"answer": ["D"]}', '["D"]', "```json\n{", '{"answer": 4}'],
)
def test_other_forms_are_wrong_as_upstream(folder: str, text: str) -> None:
    suite = suite_of("emobench", path=folder)
    assert records_of(suite, lambda form: text)[0]["correct"] == 0


def test_a_row_that_is_no_question(tmp_path: Path) -> None:
    write_rows(tmp_path / "EA.jsonl", [EA | {"label": "Sing"}])
    write_rows(tmp_path / "EU.jsonl", [EU])
    with pytest.raises(InputError, match=r"EA.jsonl, row 1 is no question of EA"):
        suite_of("emobench", path=str(tmp_path))
    with pytest.raises(InputError, match=r"has no EU.jsonl. Clone github.com/Sahandfer/EmoBench"):
        (tmp_path / "EU.jsonl").unlink()
        suite_of("emobench", path=str(tmp_path))
