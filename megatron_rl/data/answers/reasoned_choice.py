"""The form of DeepEnlighten's completions, ``<think> reasoning </think> <answer> (B) </answer>``, and what they choose.

Rules of the authors' reward (github.com/DolbyUUU/DeepEnlighten, ``verl/utils/reward_score/social_iqa.py``), in searches
that take linear time. Plain text in, plain text out.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

LETTERS = "ABC"
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
HEADERS = (
    "Assistant:",
    "<|im_start|>assistant",
    "<|start_header_id|>assistant<|end_header_id|>",
)  # tried in this order
END_TOKENS = ("<|eom_id|>", "<|eot_id|>", "<|end_of_text|>", "<|im_end|>", "<|endoftext|>")
_LETTER = re.compile(r"<answer>\s*\(([A-Z])\)")


class Choice(NamedTuple):
    """What a completion says."""

    letter: str  # the option chosen; "" where none of A, B, C is
    formed: bool  # it has the form, and nothing beside it


NOTHING = Choice("", False)


def after_header(text: str) -> str | None:
    """What follows the assistant's header in prompt and response together; None where there is no header.

    The first header *of the list* that occurs anywhere counts, at its first place, as upstream has it: "Assistant:" in
    the reasoning under a Qwen prompt cuts the completion there.
    """
    header = next((header for header in HEADERS if header in text), None)
    return None if header is None else text.partition(header)[2]


def own_text(prompt: str, response: str) -> str:
    """The response alone, with the opening ``<think>`` that a prompt ends with put back in front."""
    return TAGS[0] + response if prompt[-32:].rstrip().endswith(TAGS[0]) else response


def read(text: str) -> Choice:
    """What a completion chooses, and whether it has the form."""
    return Choice(_chosen(text), _formed(text))


def right_letter(answer: Any) -> str:
    """The letter of a right answer: a letter, Social IQa's label (1, 2, 3), or an object that has one as ``label``.

    Raises ValueError for anything else.
    """
    said = answer.get("label") if isinstance(answer, Mapping) else answer
    label = str(said).strip()
    if label in ("1", "2", "3"):
        return LETTERS[int(label) - 1]
    if label in tuple(LETTERS):
        return label
    raise ValueError(f"the right answer is {said!r}; it must be A, B or C, or a label of Social IQa: 1, 2 or 3")


def _chosen(text: str) -> str:
    """X where all tags are there, ``</think>`` before the first ``<answer>``, and ``<answer> (X) … </answer>``."""
    if not all(tag in text for tag in TAGS) or text.index(TAGS[1]) > text.index(TAGS[2]):
        return ""
    match = _LETTER.search(text)
    if match is None or text.rindex(TAGS[3]) < match.end():
        return ""
    return match[1] if match[1] in LETTERS else ""


def _formed(text: str) -> bool:
    """Every tag once and in order; white space before ``<answer>``; after ``</answer>`` nothing or one end token."""
    if any(text.count(tag) != 1 for tag in TAGS):
        return False
    think, think_end, answer, answer_end = (text.index(tag) for tag in TAGS)
    if not think < think_end < answer < answer_end or text[think_end + len(TAGS[1]) : answer].strip():
        return False
    return text[answer_end + len(TAGS[3]) :].strip() in ("", *END_TOKENS)
