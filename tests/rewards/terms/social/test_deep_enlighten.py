"""DeepEnlighten's reward: its published values, and the rule said again in another way on broken completions."""

import random
import re

import pytest

from megatron_rl.data.task import Sample
from megatron_rl.data.tasks.social_iqa import TEMPLATES
from megatron_rl.rewards.terms.social.deep_enlighten import deep_enlighten

CELLS = dict(context="Sam fell.", question="Why?", answerA="ran", answerB="slipped", answerC="slept")
PROMPTS = {name: template.format(**CELLS) for name, template in TEMPLATES.items()}
QWEN = PROMPTS["qwen-instruct"]
HEAD = {"format_correct": 1.0, "format_incorrect": -1.0}

VALUES = [  # response, total with ±2 for the form, total with ±1 as the authors' code has it
    (" r </think> <answer> (B) </answer><|im_end|>", 4, 3),
    (" r </think> <answer> (B) </answer>", 4, 3),
    (" r </think><answer>(B) the b option</answer>", 4, 3),
    (" r </think> <answer> (A) </answer>", 0, -1),
    (" r </think> <answer> (D) </answer>", -1, -2),
    (" r </think> <answer> B </answer>", -1, -2),
    (" r </think> <answer> (b) </answer>", -1, -2),
    (" r </think> so <answer> (B) </answer>", 0, 1),
    (" r </think> <answer> (B) </answer> and more", 0, 1),
    (" r </think> <answer> (B) </answer><|im_end|><|im_end|>", 0, 1),
    (" r </think> <answer> (B) </answer> <answer> (B) </answer>", 0, 1),
    (" <think> r </think> <answer> (B) </answer>", 0, 1),
    (" r <answer> (B) </answer>", -5, -4),
    (" r and so on", -5, -4),
    (" r </think> <answer> (B)", -5, -4),
    ("", -5, -4),
]


def score(response: str, prompt: str = QWEN, answer: object = "2", **args) -> float:
    return deep_enlighten(Sample(prompt, response, answer), **args)["score"]


@pytest.mark.parametrize(("response", "seed", "head"), VALUES)
@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_published_values(prompt, response, seed, head):
    for mode in ("faithful", "fixed"):
        assert score(response, prompt, mode=mode) == seed
        assert score(response, prompt, mode=mode, **HEAD) == head


def test_every_end_token_of_the_models_is_allowed():
    for token in ("<|eom_id|>", "<|eot_id|>", "<|end_of_text|>", "<|im_end|>", "<|endoftext|>"):
        assert score(f" r </think> <answer> (B) </answer>\n{token} ") == 4
    assert score(" r </think> <answer> (B) </answer><|other|>") == 0


def test_without_a_header_nothing_is_valid():
    good = " r </think> <answer> (B) </answer>"
    assert score(good, "Question? <think>") == -5 and score(good, "Question? <think>", **HEAD) == -4
    assert score(good, "Question? <think>", mode="fixed") == 4


def test_header_in_the_reasoning():
    """Upstream cuts the completion there, and the opening <think> of the prompt is lost."""
    response = " he says Assistant: hello </think> <answer> (B) </answer>"
    assert score(response) == -5
    assert score(response, mode="fixed") == 4
    again = " Assistant: <think> hello </think> <answer> (B) </answer>"
    assert score(again) == 4 and score(again, mode="fixed") == 0
    assert score(response, PROMPTS["base"]) == 4  # the prompt's own header is the first


def test_parts_and_answers():
    sample = Sample(QWEN, " r </think> so <answer> (B) </answer>", "B")
    assert deep_enlighten(sample) == {"score": 0.0, "format": -2.0, "answer": 2.0}
    for answer in ("2", " 2\n", 2, "B", {"label": "2", "answerA": "ran"}):
        assert score(" r </think> <answer> (B) </answer>", answer=answer) == 4
    with pytest.raises(ValueError, match="the right answer is 'slipped'; it must be A, B or C, or a label"):
        score("", answer="slipped")


def brute(text: str | None, right: str) -> tuple[int, int]:
    """Upstream's rule as it is told, with expressions over the whole text: (format, answer)."""
    if text is None:
        return -2, -3
    once = r"(?!.*<think>.*<think>)(?!.*</think>.*</think>)(?!.*<answer>.*<answer>)(?!.*</answer>.*</answer>)"
    end = r"(?:<\|eom_id\|>|<\|eot_id\|>|<\|end_of_text\|>|<\|im_end\|>|<\|endoftext\|>)?"
    form = re.fullmatch(rf"{once}.*?<think>.*?</think>\s*<answer>.*?</answer>\s*{end}\s*", text, re.DOTALL)
    tags = all(tag in text for tag in ("<think>", "</think>", "<answer>", "</answer>"))
    order = re.match(r"(?:(?!<answer>).)*</think>", text, re.DOTALL)
    letter = re.search(r"<answer>\s*\(([A-Z])\)\s*(.*?)</answer>", text, re.DOTALL)
    if not (tags and order and letter) or letter[1] not in "ABC":
        return (2 if form else -2), -3
    return (2 if form else -2), (2 if letter[1] == right else -2)


PIECES = ["<think>", "</think>", "<answer>", "</answer>", "(A)", "(B)", "(C)", "(D)", "( B )", "B", " ", "\n", "r", ")"]
PIECES += [
    "<|im_end|>",
    "<|eot_id|>",
    "Assistant:",
    "<|im_start|>assistant",
    "<|endoftext|>",
    "<",
    "</",
    "é",
    "\x00",
    "(",
]


def test_broken_completions_score_as_the_rule_says():
    rng = random.Random(0)
    whole = [" r", "</think>", " ", "<answer>", " ", "(B)", " ", "</answer>", ""]
    formed = 0
    for _ in range(12_000):
        if rng.random() < 0.5:  # pieces at random, or a right completion with a few faults
            pieces = [rng.choice(PIECES) for _ in range(rng.randrange(14))]
        else:
            pieces = list(whole)
            for _ in range(rng.randrange(4)):
                at = rng.randrange(len(pieces) + 1)
                pieces[at : at + rng.randrange(2)] = [rng.choice(PIECES)] * rng.randrange(2)
        response, prompt, right = (
            "".join(pieces),
            rng.choice([*PROMPTS.values(), "no header <think>"]),
            rng.choice("ABC"),
        )
        full = prompt + response
        headers = ("Assistant:", "<|im_start|>assistant", "<|start_header_id|>assistant<|end_header_id|>")
        header = [h for h in headers if h in full]
        behind = full[full.index(header[0]) + len(header[0]) :] if header else None
        for mode, text in (("faithful", behind), ("fixed", "<think>" + response)):
            found = deep_enlighten(Sample(prompt, response, right), mode=mode)
            assert (found["format"], found["answer"]) == brute(text, right), (mode, prompt[:20], response)
            formed += found["format"] > 0
    assert formed > 1000  # right ones are among them
