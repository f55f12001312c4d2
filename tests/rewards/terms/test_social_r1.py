import pytest

from megatron_rl.data.task import Sample
from megatron_rl.rewards.terms.length import length_window, window_factor
from megatron_rl.rewards.terms.sip import sip_content, sip_structure
from megatron_rl.rewards.terms.social_r1 import adjusted, combine, social_r1, weights

STORY = "Sally puts the ball into the basket and leaves. Anne moves the ball to the box."
THINK = (
    "Cue Encoding: Sally puts the ball into the basket and leaves; a dragon watches Anne, who has moved it.\n"
    "Cue Interpretation: Sally did not see the move, so what she has in mind is the basket and no other place.\n"
    "Goal Clarification: she wants her ball back, and the question is where she turns first when she returns.\n"
    "Response Generation: she looks where she believes it to be, which is where she had left it herself before.\n"
)
RIGHT = f"<think>{THINK}</think>\n<Answer>A</Answer>"


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ((1, 1, 0.8, 0.5, 0, window_factor(1000)), 5.602777),
        ((1, 0, 0.8, 0.5, 0, window_factor(1000)), 0.920557),
        ((0, 1, 0.8, 0.5, 0, window_factor(1000)), 0.0),
        ((1, 0, 0, -2, 0, window_factor(100)), 0.01),
        ((1, 1, 0.8, 0.5, 0, window_factor(3000)), 2.801406),
    ],
)
def test_known_values(numbers, expected):
    assert combine(*numbers) == pytest.approx(expected, abs=5e-7)


def test_curriculum():
    assert weights(0) == (2, 1)
    assert weights(100) == (1.5, 2)
    assert weights(200) == weights(10_000) == (1, 3)
    assert combine(1, 1, 0.8, 0.5, 200, 1) == pytest.approx(1 + 0.8 + 3 * 2.5**1.2)
    assert combine(1, 1, 0.8, 0.5, 200, 1) == combine(1, 1, 0.8, 0.5, 999, 1)


def test_adjusted():
    assert [adjusted(c) for c in (-3, -2, 0, 2)] == pytest.approx([0, 0, 2.297397, 5.278032], abs=5e-7)


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("full", (1 + 1.5 * 0.8 + 2 * 2.5**1.2) * 0.5),
        ("outcome", 2.0),
        ("structure", (1 + 1.5 * 0.8) * 0.5),
        ("content", (1 + 2 * 2.5**1.2) * 0.5),
        ("no_length", 1 + 1.5 * 0.8 + 2 * 2.5**1.2),
    ],
)
def test_variants(variant, expected):
    assert combine(1, 1, 0.8, 0.5, 100, 0.5, variant) == pytest.approx(expected)


def test_variants_without_the_format():
    assert combine(0, 1, 1, 2, 0, 1, "outcome") == 1
    assert [combine(0, 1, 1, 2, 0, 1, v) for v in ("full", "structure", "content", "no_length")] == [0, 0, 0, 0]
    with pytest.raises(ValueError, match="no_length"):
        combine(1, 1, 1, 1, 0, 1, "nothing")  # type: ignore[arg-type]


def test_the_reward_is_the_combination_of_the_single_rules():
    sample = Sample("Q?", RIGHT, "A", extra={"story": STORY}, step=50)
    score = social_r1(sample)
    s, c = sip_structure(sample)["score"], sip_content(sample)["score"]
    length = length_window(sample)["score"]
    assert (s, c) == (1, 4 * 6 / 9 - 2)  # of nine content words dragon, watches and moved are not in the story
    assert score == {
        "score": combine(1, 1, s, c, 50, length),
        "fmt": 1,
        "em": 1,
        "structure": s,
        "content": c,
        "adj": adjusted(c),
        "length": length,
        "w_structure": 1.75,
        "w_content": 1.5,
        "tau": 1,
    }


def test_wrong_and_formless_answers():
    wrong = social_r1(Sample("Q?", RIGHT, "B", extra={"story": STORY}))
    assert (wrong["em"], wrong["tau"]) == (0, 0.2)
    assert 0.01 < wrong["score"] < social_r1(Sample("Q?", RIGHT, "A", extra={"story": STORY}))["score"] * 0.2
    cut_off = social_r1(Sample("Q?", f"<think>{THINK}", "A", extra={"story": STORY}))
    assert (cut_off["score"], cut_off["fmt"], cut_off["structure"]) == (0, 0, 1)  # what it reasoned is still logged
    assert social_r1(Sample("Q?", RIGHT, "B", extra={"story": STORY}), variant="outcome")["score"] == 1
