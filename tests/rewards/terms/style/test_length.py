from math import exp

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_rl.data.task import Sample
from megatron_rl.rewards.terms.style.length import _distinct_at_least, length_window, repetition_factor, window_factor

BLOCKS = st.text(max_size=40)
TEXTS = st.one_of(
    st.text(max_size=80),
    st.text(alphabet="ab ", max_size=80),
    st.text(alphabet="aåĀ我𝕏\ud800", max_size=60),
    st.builds(lambda block, times, tail: block * times + tail, BLOCKS, st.integers(1, 4), BLOCKS),
)


def test_window_factor():
    assert window_factor(400) == pytest.approx(0.5)
    assert window_factor(1000) == pytest.approx(0.99999386, abs=5e-9)
    assert window_factor(3000) == pytest.approx(0.5)
    assert window_factor(0) == pytest.approx(0.00033535, abs=5e-9)
    assert 0 <= window_factor(10_000_000) < 1e-300  # no overflow
    assert window_factor(2500, l_max=2500) == pytest.approx(0.5)


def test_repetition_factor():
    assert repetition_factor("a" * 32) == pytest.approx(0.00119524, abs=5e-9)
    assert repetition_factor("abcdefghijklmnop" * 2) == 1
    assert repetition_factor("a" * 15) == 1  # shorter than a 16-gram
    assert repetition_factor("") == 1


@given(TEXTS)
def test_repetition_factor_against_a_set_of_all_grams(text):
    total = len(text) - 15
    grams = [text[i : i + 16] for i in range(total)]
    ratio = (total - len(set(grams))) / total if total > 0 else 0.0
    assert repetition_factor(text) == (1.0 if ratio <= 0.1 else exp(-8 * (ratio - 0.1)))


@given(TEXTS.filter(lambda text: len(text) >= 16))
def test_the_quick_count_never_exceeds_the_true_one(text):
    assert 1 <= _distinct_at_least(text) <= len({text[i : i + 16] for i in range(len(text) - 15)})


def test_the_quick_count_is_exact_for_plain_prose():
    text = " ".join(f"{name} moves the ball to the {name}-shaped box." for name in "abcdefgh")
    assert _distinct_at_least(text) == len({text[i : i + 16] for i in range(len(text) - 15)})


def test_length_window():
    text = "".join(chr(32 + i * i % 89) for i in range(600))
    score = length_window(Sample("", f"<think>{text}</think><Answer>A</Answer>", "A"))
    assert score == {
        "score": window_factor(600) * repetition_factor(text),
        "window": window_factor(600),
        "repetition": repetition_factor(text),
    }
    assert score["repetition"] < 1 < 600 < 3000  # i * i mod 89 has period 89
    assert length_window(Sample("", "no reasoning", "A"))["score"] == window_factor(0)
