"""SimpleRL-Zoo's counts of a completion's text."""

import pytest

from megatron_rl.data.answers.repetition import repeats
from megatron_rl.data.task import Sample
from megatron_rl.rewards.config import RewardsConfig
from megatron_rl.rewards.registry import check_rewards
from megatron_rl.rewards.terms.style.reasoning_style import reasoning_style


def style(response: str, **args) -> dict[str, float]:
    return reasoning_style(Sample("", response, "1"), **args)


def test_keywords_are_substrings_in_whatever_case():
    text = "Wait, let me try again. However, I await; rechecking and Retry. Alternatively rethink"
    assert style(text)["keywords"] == 8  # await is one, too
    assert style(text, keywords=["let me"])["keywords"] == 1
    assert style("")["keywords"] == 0


def test_boxes():
    assert style(r"so \boxed{1}")["boxed"] == style(r"\BOXED{\frac{1}{2}}")["boxed"] == 1
    assert style(r"so \boxed{1")["boxed"] == style("so 1")["boxed"] == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", False),
        ("abcdefghij", False),
        ("abcdefghij" * 2, True),  # the same characters in two windows
        ("abcdefghijjihgfedcba", True),  # as sets
        ("abcdefghijklmnopqrst", False),
        ("abcdefghijabcdefghiX", False),  # 9 of 11 characters: 0.818
        ("The first step is to add.\nThe first step is to add it.", True),  # pieces of 24 and 27 characters
        ("We count 14 apples and a pear. Then they are put in bags by Zoe.", False),
        ("abcdefghij" + "klmnopqrst" + "abcdefghij", False),  # not neighbours
    ],
)
def test_repetition(text, said):
    assert repeats(text) is said
    assert style(text)["score"] == float(said)


def test_it_is_a_monitor_beside_a_reward():
    terms = {"exact_answer": 1.0, "reasoning_style": 0.0}
    assert check_rewards(RewardsConfig(terms=terms, args={"reasoning_style": {"keywords": ["hmm"]}})) == []
