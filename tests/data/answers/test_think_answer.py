import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_rl.data.answers.think_answer import letter, letter_matches, normalise, parse, split, thinking

EXPRESSION = re.compile(r"^<think>(.*?)</think>(.*?)<Answer>(.*?)</Answer>$", re.DOTALL)
PIECES = ["<think>", "</think>", "<Answer>", "</Answer>", "<answer>", "A", " ", "\n", "<", "</", "é"]


@given(st.lists(st.sampled_from(PIECES), max_size=14), st.booleans())
def test_split_finds_what_the_expression_does(pieces, in_form):
    text = "".join(pieces).rstrip()
    if in_form:
        text = f"<think>{text}</Answer>"
    parts, match = split(text), EXPRESSION.match(text)
    assert (parts is None) == (match is None)
    if match is not None:
        assert parts == (match[1], match[3])
        assert thinking(text) == parts.think


@given(st.lists(st.sampled_from(PIECES), max_size=14), st.sampled_from(["Q?", "Q? <think>\n", "<think></think>"]))
def test_a_parsed_response_is_what_its_parts_say(pieces, prompt):
    response = "".join(pieces)
    text, think, parts = parse(prompt, response + " \n")
    assert text == ("<think>" if prompt.endswith("<think>\n") else "") + response.rstrip()
    assert (think, parts) == (thinking(text), split(text))


def test_thinking_of_unfinished_completions():
    assert thinking("<think> cut off") == " cut off"
    assert thinking("so <think>a</think>b</think>") == "a"
    assert thinking("no reasoning") == ""


@given(st.lists(st.sampled_from(["<Answer>", "</Answer>", "A", "B", "b", "(", " ", "\n", "<"]), max_size=12))
def test_the_letter_is_the_expressions_first_match(pieces):
    text = "".join(pieces)
    match = re.search(r"<Answer>\s*([A-Z])[\s\S]*?</Answer>", text)
    assert letter(text) == (match[1] if match else "")


@pytest.mark.parametrize(("gold", "same"), [("B", True), ("(b)", True), ("B.", True), ("A", False), ("", False)])
def test_a_letter_may_be_written_in_any_way(gold, same):
    assert letter_matches("<Answer>\n B. the box</Answer>", gold) is same
    assert not letter_matches("no answer", gold)


def test_normalise():
    assert normalise(" (B).\n Sally's  BOX ") == "b sallys box"
