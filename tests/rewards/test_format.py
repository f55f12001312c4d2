import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_rl.rewards.format import END_TOKENS, completion, format, split, thinking
from megatron_rl.rewards.sample import Sample

EXPRESSION = re.compile(r"^<think>(.*?)</think>(.*?)<Answer>(.*?)</Answer>$", re.DOTALL)
PIECES = ["<think>", "</think>", "<Answer>", "</Answer>", "<answer>", "A", " ", "\n", "<", "</", "é"]
GOOD = "<think> reasons </think>\n<Answer> B </Answer>"


def score(response: str, prompt: str = "Q?") -> float:
    return format(Sample(prompt, response, "B"))["score"]


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


@pytest.mark.parametrize("token", END_TOKENS)
@pytest.mark.parametrize("tail", ["{}", " {}", "{}\n", "\n{}\n", "{}{}"])
def test_end_tokens_do_not_count(token, tail):
    assert completion(Sample("", GOOD + tail.replace("{}", token), "")) == GOOD


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (GOOD, 1),
        (GOOD + "\n", 1),
        ("<think></think><Answer></Answer>", 1),
        ("<think>a<think>b</think>c</think>d<Answer>x</Answer> y <Answer>z</Answer>", 1),
        (" " + GOOD, 0),  # text in front of the first tag
        (GOOD + " so B", 0),
        (GOOD + "<|im_start|>", 0),  # not an end token
        ("<think> reasons </think> <answer> B </answer>", 0),  # the tag has a capital A
        ("<think> reasons <Answer> B </Answer>", 0),
        ("<think> reasons </think> <Answer> B", 0),  # cut off
        ("<Answer> B </Answer><think> reasons </think>", 0),
        ("<think><Answer></think></Answer>", 0),
        ("", 0),
        ("<|im_end|>", 0),
    ],
)
def test_format(response, expected):
    assert score(response) == expected


def test_a_prompt_may_open_the_reasoning():
    opened = GOOD.removeprefix("<think>")
    assert score(opened, "Q? <think>\n") == 1
    assert score(opened) == 0
    assert score(GOOD, "Q? <think>\n\n</think>\n\n") == 1  # a prompt that closes it opened nothing


def test_thinking_of_unfinished_completions():
    assert thinking("<think> cut off") == " cut off"
    assert thinking("so <think>a</think>b</think>") == "a"
    assert thinking("no reasoning") == ""
