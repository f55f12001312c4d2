"""Which option a completion chooses."""

import random

import pytest

from megatron_rl.data.answers.chosen_option import after_thinking, bracketed, chosen, named

OPTIONS = ["box", "red_basket", "the shelf"]


@pytest.mark.parametrize(
    ("text", "letter", "formed"),
    [
        ("[[C]]", "C", True),
        ("[[B]] or rather [[A]]", "A", True),  # A, B, C, D in this order, wherever they stand
        ("Answer: [D]", "D", False),
        ("[B] and [[C]]", "C", True),
        ("The Answer is B", "B", False),
        ("B. A Cat", "C", False),  # the last letter, in whatever word
        ("none", "A", False),
        ("", "A", False),
        ("[[E]]", "A", False),
    ],
)
def test_tombench_rule(text: str, letter: str, formed: bool) -> None:
    assert bracketed(text) == (letter, formed)


def test_tombench_rule_is_that_of_the_authors_script() -> None:
    """Against its steps one by one, written down as get_results.py takes them."""

    def theirs(text: str) -> str:
        for form in ("[[{}]]", "[{}]"):
            for letter in "ABCD":
                if form.format(letter) in text:
                    return letter
        for character in reversed(text):
            if character in "ABCD":
                return character
        return "A"

    rng = random.Random(0)
    for _ in range(3000):
        text = "".join(
            rng.choice(["[", "]", "[[", "]]", "A", "B", "C", "D", "x", " "]) for _ in range(rng.randint(0, 9))
        )
        assert bracketed(text)[0] == theirs(text)


@pytest.mark.parametrize(
    ("text", "letter", "formed"),
    [
        ("<think>it is A.</think> [[B]]", "B", True),
        ("[[A]], no, [[C]]", "C", True),
        ("<answer>the shelf</answer>", "C", True),
        ("<answer>(B) red_basket</answer>", "B", True),
        ("so \\boxed{A}", "A", True),
        ("The answer is (C).", "C", False),
        ("**Answer:** B", "B", False),
        ("B. red_basket", "B", False),
        ("(C) the shelf, for A. left", "C", False),
        ("red_basket. Explanation: the box was empty.", "B", False),
        ("A", "A", False),
        ("box", "A", False),
        ("Basketball in a boxing ring", "", False),
        ("[[Z]]", "", False),
        ("<think> the answer is A", "", False),
        ("", "", False),
    ],
)
def test_chosen(text: str, letter: str, formed: bool) -> None:
    assert chosen(text, OPTIONS) == (letter, formed)


def test_named_takes_text_before_letter() -> None:
    assert named(" Red_Basket. ", OPTIONS) == "B"
    assert named("B", ["B", "A"]) == "A"  # an option's text goes first
    assert named("D", OPTIONS) == ""


def test_thinking_without_an_end_says_nothing() -> None:
    assert after_thinking("<think>a</think>b</think>c") == "c"
    assert after_thinking("  <think>a") == ""
    assert after_thinking("a") == "a"
