"""Answers compared by value: where a completion gives them, and when two are the same."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_rl.data.answers.exact_answer import boxed, equal, judge
from megatron_rl.data.answers.think_answer import parse


def score(response: str, answer: object, prompt: str = "", form: str = "any") -> tuple[bool, bool]:
    return judge(parse(prompt, response).text, answer, form)


@pytest.mark.parametrize(
    ("response", "answer", "expected"),
    [
        (r"<think>2</think> So \boxed{72}.<|im_end|>", "72", (1, 1)),
        (r"\boxed{1} or rather \boxed{\frac{3}{7}}", r"\frac{3}{7}", (1, 1)),
        (r"\boxed{72}", "73", (0, 1)),
        ("First 10, then 1,080 dollars.", "1080", (1, 1)),
        ("It is 3-5", 5, (1, 1)),
        ("It is -5", -5, (1, 1)),
        ("It is the box, 12", "shelf", (0, 0)),
        ("The answer is .5", 0.5, (1, 1)),
        ("The answer is -.5", "-1/2", (1, 1)),
        ("The answer is .5", 5, (0, 1)),
        ("so 1e5", 100000, (1, 1)),
        ("so 1.5e-3 m", 0.0015, (1, 1)),
        ("so 1e5", 5, (0, 1)),
        ("in 3e4x", 4, (1, 1)),  # no exponent
        ("wait...5", 5, (1, 1)),
        ("version 1.2.3", 3, (1, 1)),
        ("<answer> The Shelf </answer>", "the shelf.", (1, 1)),
        ("<Answer>(B)</Answer>", "B", (1, 1)),
        (r"<answer>so \boxed{27}</answer>", 27.0, (1, 1)),
        ("<answer>1</answer> no, <answer>2</answer> 3", "2", (1, 1)),
        (r"<think>\boxed{72}", "72", (0, 0)),
        (r"<think>\boxed{72}</think> I do not know.", "72", (0, 0)),
        ("<think>1</think> 2 <think>3</think> 4", "4", (1, 1)),
        (r"\boxed{72", "72", (1, 1)),  # a box without an end is none; the last number is
        (r"\boxed{x", "x", (0, 0)),
        ("", "72", (0, 0)),
    ],
)
def test_where_the_answer_stands(response, answer, expected):
    assert score(response, answer) == expected


def test_a_prompt_that_began_the_thinking_leaves_it_to_the_completion_to_end_it():
    assert score(r"still 72", "72", prompt="…<think>\n") == (0, 0)
    assert score(r"done</think> 72", "72", prompt="…<think>\n") == (1, 1)


def test_one_form_alone_can_be_asked_for():
    text = r"<answer>1</answer> \boxed{2} 3"
    assert [score(text, "1", form="tag")[0], score(text, "2", form="boxed")[0], score(text, "3", form="number")[0]] == [
        1,
        1,
        1,
    ]
    assert score("72", "72", form="boxed") == (0, 0)
    assert score("so 72 apples", "seventy", form="number") == (0, 1)


@pytest.mark.parametrize(
    ("found", "answer"),
    [
        ("12.80", 12.8),
        ("$1,234,567.00", 1234567),
        ("50\\%", "50"),
        ("3/7", r"\dfrac{3}{7}"),
        (r"-\frac12", "-0.5"),
        ("1e3", 1000),
        ("x = 5", "5"),
        ("(540)", "540"),
        (r"90^\circ", "90"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})"),
        (r"\text{Evelyn}", "evelyn"),
        ("  two   words ", "Two words."),
        ("true", True),
        ("b", ["a", "B"]),
        ('{"A": "Knife", "B": 2}', {"B": 2, "A": "Knife"}),
        ("0", 0),
    ],
)
def test_the_same_answer_in_other_dress(found, answer):
    assert equal(found, answer)


@pytest.mark.parametrize(
    ("found", "answer"),
    [
        ("12.8", "12.80001"),
        ("1", "-1"),
        ("1/0", "0"),
        (r"\Delta", r"\delta"),
        ("two words", "twowords"),
        ("knife", {"A": "knife"}),
        ("a", []),
        ("", "0"),
        (r"\leftarrow", "arrow"),
    ],
)
def test_other_answers(found, answer):
    assert not equal(found, answer)


@given(st.fractions(max_denominator=10**6), st.integers(-(10**9), 10**9))
def test_numbers_are_equal_by_value(quotient, whole):
    top, bottom = quotient.numerator, quotient.denominator
    sign = "-" if top < 0 else ""
    assert equal(f"{top * 3}/{bottom * 3}", rf"{sign}\frac{{{abs(top)}}}{{{bottom}}}")
    assert equal(f"{whole:,}", whole) and equal(f"{whole}.0", whole)
    assert equal(f"{whole}", whole + 1) is False


@given(st.text("{}ab\\", max_size=30))
def test_a_box_ends_where_its_braces_do(inside):
    depth, ends = 1, None
    for at, character in enumerate(inside):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            ends = at
            break
    assert boxed(rf"x \boxed{{{inside}") == (inside[:ends].strip() if ends is not None else None)


@given(st.text(max_size=200), st.text(max_size=20))
def test_any_text_gets_a_score(response, answer):
    score(response, answer)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("9" * 100_000, (0, 1)),
        ("1e99999999", (0, 1)),
        ("1," * 50_000 + " 7", (1, 1)),
        ("<answer>" * 20_000 + "7</answer>", (1, 1)),
        (r"\boxed{" * 20_000 + "7}", (1, 1)),
        (r"\frac{1" * 20_000, (0, 1)),
    ],
)
def test_long_completions_are_scored(text, expected):
    assert score(text, "7") == expected
    assert score(rf"\boxed{{{'9' * 100_000}}}", "7") == (0, 1)
