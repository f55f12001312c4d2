"""Partial credit for lettered answers: known values, the published grader's rule, hostile completions."""

import random
import re

import pytest

from megatron_rl.data.answers.lettered import given, shares
from megatron_rl.data.task import Sample
from megatron_rl.rewards.terms.temporal_clue import temporal_clue

SOLUTION = {"A": "Mr. Green", "B": "Knife", "C": "Gazebo", "D": "11:30 PM", "E": "Power", "F": "Mrs. White"}
GOLD = "\n".join(f"{letter}. {answer}" for letter, answer in SOLUTION.items())


def upstream(solution: dict[str, str], text: str) -> float:
    """The published rule, as its regular expressions say it."""
    right = 0
    for key, value in solution.items():
        matches = re.findall(rf"{key}\. ([A-Za-z \.:-]+)", text)
        right += bool(matches) and matches[-1].strip().lower() == value.lower()
    return right / len(solution)


def score(text: str, **options: bool) -> dict[str, float]:
    return temporal_clue(Sample("", text, SOLUTION), **options)


@pytest.mark.parametrize(
    ("text", "fixed", "strict"),
    [
        (GOLD, 1.0, 5 / 6),  # a time cannot be right upstream
        (GOLD.upper(), 1.0, 5 / 6),
        (GOLD.replace("\n", " ; "), 1.0, 5 / 6),
        ("A. Mr. Green\nB. Knife\nC. Hall", 1 / 3, 1 / 3),
        ("A. Mr. Green   \nB. Rope\nB. Knife", 1 / 3, 1 / 3),  # the last of a letter counts
        ("B. Knife\nB. Rope", 0.0, 0.0),
        (f"A. Mrs. White\nOn second thoughts:\n{GOLD}", 1.0, 5 / 6),
        ("A. Mr. Green.", 0.0, 0.0),
        ("A.Mr. Green", 0.0, 0.0),
        ("**A. Mr. Green**", 1 / 6, 1 / 6),
        ("A. Mr. Green B. Knife", 0.0 + 1 / 6, 1 / 6),  # one run: A's goes on to its end
        ("", 0.0, 0.0),
    ],
)
def test_known_values(text, fixed, strict):
    assert score(text)["score"] == pytest.approx(fixed, abs=1e-6)
    assert score(text, strict_upstream=True)["score"] == pytest.approx(strict, abs=1e-6)
    assert upstream(SOLUTION, text) == pytest.approx(strict, abs=1e-6)


def test_two_of_six():
    assert score("A. mr. green\nD. 11:30 pm")["score"] == pytest.approx(0.333333, abs=1e-6)
    assert score("A. mr. green\nD. 11:30 pm")["answered"] == pytest.approx(2 / 6)


def test_strict_is_upstream_on_malformed_completions():
    """10,000 of them, of pieces that matter; in fixed mode never less is right."""
    rng = random.Random(0)
    pieces = [
        "A. ",
        "B. ",
        "D.",
        ". ",
        " ",
        "\n",
        "Mr. Green",
        "Knife",
        "11:30 PM",
        "A",
        ":",
        "-",
        "|",
        "é",
        "*",
        "0",
        "\t",
    ]
    for _ in range(10_000):
        text = "".join(pieces[int(rng.random() * len(pieces))] for _ in range(int(rng.random() * 30)))
        strict, fixed = score(text, strict_upstream=True), score(text)
        assert strict["score"] == upstream(SOLUTION, text), text
        found = {key: m[-1].strip() for key in SOLUTION if (m := re.findall(rf"{key}\. ([A-Za-z0-9 .:-]+)", text))}
        assert given(text, SOLUTION) == found, text
        assert fixed["answered"] == len(found) / 6 and 0 <= fixed["score"] <= fixed["answered"] <= 1


@pytest.mark.parametrize("piece", ["A. ", "A.", "A. A", "A. \n", "x", "\n", "A. Mr. Green\n"])
def test_long_completions_are_read_once(piece):
    """A megabyte of what could be matched again and again."""
    text = piece * (1_000_000 // len(piece))
    assert 0 <= score(text)["score"] <= 1


@pytest.mark.parametrize("solution", [None, "A", {}, ["A"]])
def test_a_solution_that_is_none(solution):
    with pytest.raises(ValueError, match="it must be an object of letters with their answers"):
        shares("A. x", solution)
