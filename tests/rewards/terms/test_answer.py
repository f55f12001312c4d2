import pytest

from megatron_rl.data.task import Sample
from megatron_rl.rewards.terms.answer import answer_in_format, multiple_choice


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
    assert multiple_choice(Sample("Q?", response, gold)) == {"score": expected}


@pytest.mark.parametrize(
    ("response", "gold", "expected"),
    [
        ("<think> r </think> <Answer> basket </Answer> ", "basket", 1),
        ("<think>r</think><Answer>The  Box!</Answer>", "the box", 1),
        ("<think>r</think><Answer>box</Answer>", "the box", 0),
        ("<Answer>basket</Answer>", "basket", 0),  # right, but not in the form
        ("<think>r</think><Answer>basket", "basket", 0),
    ],
)
def test_answer_in_format(response, gold, expected):
    assert answer_in_format(Sample("Q?", response, gold)) == {"score": expected}
