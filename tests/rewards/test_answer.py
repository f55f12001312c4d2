import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_rl.rewards.answer import answer_in_format, letter, multiple_choice, normalise
from megatron_rl.rewards.sample import Sample


@pytest.mark.parametrize(
    ("response", "gold", "expected"),
    [
        ("<think>r</think><Answer>B</Answer>", "B", 1),
        ("<think>r</think><Answer>\n B. the box</Answer>", "(b)", 1),
        ("<Answer>B</Answer>", "B", 1),  # the form is another reward's business
        ("<Answer>C</Answer> no: <Answer>B</Answer>", "B", 0),  # the first counts
        ("<Answer>(B)</Answer>", "B", 0),
        ("<Answer>b</Answer>", "B", 0),
        ("<Answer>B", "B", 0),  # cut off
        ("B", "B", 0),
        ("", "", 0),
        ("<Answer></Answer>", "", 0),
    ],
)
def test_multiple_choice(response, gold, expected):
    assert multiple_choice(Sample("Q?", response + "<|im_end|>", gold)) == {"score": expected}


@given(st.lists(st.sampled_from(["<Answer>", "</Answer>", "A", "B", "b", "(", " ", "\n", "<"]), max_size=12))
def test_the_letter_is_the_expressions_first_match(pieces):
    text = "".join(pieces)
    match = re.search(r"<Answer>\s*([A-Z])[\s\S]*?</Answer>", text)
    assert letter(text) == (match[1] if match else "")


@pytest.mark.parametrize(
    ("response", "gold", "expected"),
    [
        ("<think> r </think> <Answer> basket </Answer> <eos>", "basket", 1),
        ("<think>r</think><Answer>The  Box!</Answer>", "the box", 1),
        ("<think>r</think><Answer>box</Answer>", "the box", 0),
        ("<Answer>basket</Answer>", "basket", 0),  # right, but not in the form
        ("<think>r</think><Answer>basket", "basket", 0),
    ],
)
def test_answer_in_format(response, gold, expected):
    assert answer_in_format(Sample("Q?", response, gold)) == {"score": expected}


def test_normalise():
    assert normalise(" (B).\n Sally's  BOX ") == "b sallys box"
