import random

import pytest

from megatron_rl.data.answers.repetition import repeat_ratio, repeats
from megatron_rl.data.task import Sample
from megatron_rl.rewards.terms.style.length import repetition_factor
from megatron_rl.rewards.terms.style.repetition import repetition


@pytest.mark.parametrize(
    ("text", "gram", "ratio"),
    [("a" * 32, 16, 16 / 17), ("abcdefghijklmnop" * 2, 16, 1 / 17), ("abc", 16, 0), ("", 1, 0), ("abab", 2, 1 / 3)],
)
def test_repeat_ratio(text: str, gram: int, ratio: float) -> None:
    assert repeat_ratio(text, gram) == pytest.approx(ratio)


def test_it_is_the_ratio_of_social_r1() -> None:
    assert repetition_factor("a" * 32) == pytest.approx(0.00119524, abs=5e-9)
    rng = random.Random(0)
    for _ in range(200):
        text = "".join(rng.choices("ab", k=rng.randrange(200)))
        expected = 2.718281828459045 ** (-8 * max(0.0, repeat_ratio(text) - 0.1))
        assert repetition_factor(text) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("abcdefghij" * 2, True),  # two windows with the same characters
        ("abcdefghijklmnopqrst", False),
        ("The ball is in the box now. The ball is in the box now.", True),  # two pieces
        ("The ball is in the box. Nobody has looked for it since Monday.", False),
        ("Yes, so. Yes, so.", False),  # pieces of fewer than 20 characters do not count
        ("", False),
        ("他把球放进了盒子里然后离开了房间去外面玩耍了。他把球放进了盒子里然后离开了房间去外面玩耍了。", True),
    ],
)
def test_repeats(text: str, expected: bool) -> None:
    assert repeats(text) is expected


def test_similarity_is_of_words_where_a_text_has_lines_and_spaces() -> None:
    assert repeats("a b\nc d e " + "a b\nc d e ")
    assert not repeats("a b\nc d e " + "ab\nc de a ")  # the same characters in other words


def test_the_reward() -> None:
    sample = Sample("Q?", f"<think>{'a' * 32}</think> b", "A")
    assert repetition(sample, of="reasoning") == {"score": pytest.approx(1 / 17), "repeats": 1.0}
    assert repetition(sample)["score"] > 0.5
    assert repetition(Sample("Q?", "", "A")) == {"score": 1.0, "repeats": 0.0}
    with pytest.raises(ValueError, match="gram is 0"):
        repetition(sample, gram=0)
