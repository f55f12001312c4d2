"""ToMBench: the authors' votes and scores."""

from pathlib import Path

import pytest

from megatron_rl.errors import InputError
from megatron_rl.evaluation.registry import suite_config
from megatron_rl.evaluation.summary import summarise
from tests.evaluation.suites.asked import records_of, suite_of, write_rows

ABILITY, ANSWER = "能力\nABILITY", "答案\nANSWER"


def row(number: int, ability: str, answer: str, english: list[str | None], chinese: list[str | None]) -> dict:
    found = {ABILITY: ability, "序号\nINDEX": number, "故事": f"故事{number}", "问题": "问？", ANSWER: answer}
    found |= {"STORY": f"Story {number}.", "QUESTION": "Who?"}
    found |= {f"选项{letter}": option for letter, option in zip("ABCD", chinese, strict=True)}
    return found | {f"OPTION-{letter}": option for letter, option in zip("ABCD", english, strict=True)}


FOUR = (["red", "green", "blue", "white"], ["A. 红", "B. 绿", "C. 蓝", "D. 白"])
TWO = (["A. Yes", "B. No", None, None], ["A. 是", "B. 否", None, None])


@pytest.fixture
def folder(tmp_path: Path) -> str:
    nan = float("nan")
    write_rows(
        tmp_path / "data/False_Belief_Task.jsonl",
        [
            row(1, "Belief: Location false beliefs", "C", *FOUR),
            row(2, "Belief: Content false beliefs Belief: Second-order beliefs", "A", *FOUR),
            row(3, "Knowledge: Information-knowledge links ", "B", *TWO),
            row(4, "Non-literal communication: Humor", "A", ["x", "y", "x", "z"], FOUR[1]),  # two options alike
            row(5, "Non-Literal Communication: Faux pas", "A. ", *FOUR),  # as one row of the published file
        ],
    )
    write_rows(
        tmp_path / "data/Hidden_Emotions.jsonl",
        [row(1, "Emotion: Hidden emotions", "B", ["Yes", "No", nan, nan], ["是", "否", nan, nan])],
    )
    return str(tmp_path / "data")


def test_questions(folder: str) -> None:
    suite = suite_of("tombench", path=folder)
    assert len(suite.items) == 6 and all(len(item.forms) == 5 for item in suite.items)
    first = suite.items[0]
    assert first.groups == {"task": "False Belief Task", "ability": "Belief", "language": "en"}
    assert [item.groups["ability"] for item in suite.items[2:]] == [
        "Knowledge",
        "Non-Literal Communication",
        "Non-Literal Communication",
        "Emotion",
    ]
    orders = [tuple(form.extra["order"].values()) for form in first.forms]
    assert all(sorted(order) == list("ABCD") for order in orders) and len(set(orders)) > 1
    prompt = first.forms[0].prompt
    texts = dict(zip("ABCD", FOUR[0], strict=True))
    listing = "\n".join(f"{shown}. {texts[own]}" for shown, own in first.forms[0].extra["order"].items())
    assert f"[Story]\nStory 1.\n\n[Question]\nWho?\n\n[Candidate Answers]\n{listing}" in prompt
    assert "step by step" not in prompt
    assert "step by step" in suite_of("tombench", path=folder, cot=True).items[0].forms[0].prompt
    two = suite.items[2].forms[0]
    assert sorted(two.extra["order"].values()) == ["A", "B"] and "C. " not in two.prompt.split("Answers]")[1]
    assert "A. A. " not in two.prompt and "A. Yes" in "".join(f.prompt for f in suite.items[2].forms)


def test_the_orders_do_not_depend_on_other_files(folder: str) -> None:
    one = suite_of("tombench", path=f"{folder}/Hidden_Emotions.jsonl").items
    assert one == suite_of("tombench", path=folder).items[-1:]


def test_languages(folder: str) -> None:
    both = suite_of("tombench", path=folder, language="both", tries=1)
    assert [item.groups["language"] for item in both.items] == ["en"] * 6 + ["zh"] * 6
    assert "[故事]\n故事1\n\n[问题]\n问？" in both.items[6].forms[0].prompt


def test_right_votes_count_and_ties_go_to_the_first(folder: str) -> None:
    """The numbers are those of the authors' get_results.py for these completions."""
    suite = suite_of("tombench", path=folder)
    wanted = {  # the option that is voted for, by its letter in the file, in the five tries
        "en/False_Belief_Task/1": "CCAAC",
        "en/False_Belief_Task/2": "BABAC",  # a tie: B came first
        "en/False_Belief_Task/3": "BDDBB",  # D is no option
        "en/False_Belief_Task/4": "CACCC",  # C's text is A's, so C is read as A
        "en/False_Belief_Task/5": "AAAAA",  # never right
        "en/Hidden_Emotions/1": "DDDAB",  # no option is what is voted for
    }

    def say(form) -> str:
        item, _, attempt = form.id.rpartition("/")
        vote, order = wanted[item][int(attempt)], form.extra["order"]
        vote = "A" if item.endswith("/4") else vote
        return f"I choose [[{next((shown for shown, own in order.items() if own == vote), 'D')}]]."

    found = summarise(suite, records_of(suite, say), 1)
    assert found["accuracy"]["mean"] == pytest.approx(3 / 6)
    assert found["by"]["task"]["False Belief Task"]["mean"] == pytest.approx(3 / 5)
    assert found["by"]["task"]["Hidden Emotions"]["mean"] == 0
    assert found["by"]["ability"]["Belief"] == {"mean": 0.5, "low": 0, "high": 1, "n": 2}
    assert found["unreadable"] == 0 and found["completions"] == 30
    silent = summarise(suite, records_of(suite, lambda form: "hm"), 1)  # read as A, in whatever order
    assert silent["unreadable"] == 1


def test_bad_files(tmp_path: Path, folder: str) -> None:
    with pytest.raises(InputError, match=r"has no \*.jsonl. Clone github.com/zhchen18/ToMBench"):
        suite_of("tombench", path=str(tmp_path))
    assert suite_config("tombench", {})[1] == [
        "tombench needs its data: Clone github.com/zhchen18/ToMBench and set tombench.path to its folder data."
    ]
    assert "does not exist" in suite_config("tombench", {"path": "nowhere.jsonl"})[1][0]
    bad = write_rows(tmp_path / "bad.jsonl", [row(1, "Belief: x", "E", *FOUR)])
    with pytest.raises(InputError, match=r"bad.jsonl, row 1: its answer is 'E'"):
        suite_of("tombench", path=bad)
