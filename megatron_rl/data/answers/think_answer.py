"""The form of a completion, ``<think>reasoning</think> … <Answer>answer</Answer>`` (Social-R1, arXiv 2603.09249).

Prompts ask for it, rewards and reports read it: plain text in, plain text out.
"""

import re
import string
from functools import lru_cache
from typing import NamedTuple

THINK, THINK_END, ANSWER, ANSWER_END = "<think>", "</think>", "<Answer>", "</Answer>"
_OPENED = re.compile(r"<Answer>\s*([A-Z])")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Parts(NamedTuple):
    """A completion of the right form, cut at its tags."""

    think: str
    answer: str


class Parsed(NamedTuple):
    """A completion of any form."""

    text: str  # all of it
    think: str  # the reasoning; "" where none begins
    parts: Parts | None  # None: not of the right form


@lru_cache(maxsize=8)  # the rewards and the report of a sample read the same completion
def parse(prompt: str, response: str) -> Parsed:
    """A response without the white space at its end, and what it consists of.

    A prompt that ends with an opening ``<think>`` began the completion itself, so the tag is put back in front.
    """
    text = response.rstrip()
    if prompt[-32:].rstrip().endswith(THINK):
        text = THINK + text
    parts = split(text)
    return Parsed(text, parts.think if parts else thinking(text), parts)


def split(text: str) -> Parts | None:
    """Groups 1 and 3 of ``^<think>(.*?)</think>(.*?)<Answer>(.*?)</Answer>$`` (DOTALL) in a completion, or None.

    Lazy groups end at the first tag that follows, so plain searches find what the expression would.
    """
    if not (text.startswith(THINK) and text.endswith(ANSWER_END)):
        return None
    think_end = text.find(THINK_END, len(THINK))
    answer = text.find(ANSWER, think_end + len(THINK_END)) if think_end >= 0 else -1
    start, end = answer + len(ANSWER), len(text) - len(ANSWER_END)
    if answer < 0 or start > end:
        return None
    return Parts(text[len(THINK) : think_end], text[start:end])


def thinking(text: str) -> str:
    """The reasoning in a completion of any form: what follows ``<think>``, up to ``</think>`` where there is one."""
    return text.partition(THINK)[2].partition(THINK_END)[0]


def normalise(text: str) -> str:
    """Lower case, ASCII punctuation removed, white space squeezed."""
    return " ".join(text.lower().translate(_NO_PUNCTUATION).split())


def letter(text: str) -> str:
    """The first capital letter that opens an ``<Answer>`` in a completion; "" when there is none.

    Group 1 of ``<Answer>\\s*([A-Z])[\\s\\S]*?</Answer>``: the last closing tag is all that there has to be behind it.
    """
    start, end = text.find(ANSWER), text.rfind(ANSWER_END)
    match = _OPENED.search(text, start) if start >= 0 else None
    return match[1] if match and match.end() <= end else ""


def letter_matches(text: str, answer: str) -> bool:
    """Whether the letter chosen in a completion is ``answer``, a letter written in any way (``(B)``, ``b.``)."""
    chosen = letter(text)
    return bool(chosen) and chosen.lower() == normalise(answer)


def answer_matches(parts: Parts | None, answer: str) -> bool:
    """Whether a completion has the form and its normalised answer is ``answer``'s."""
    return parts is not None and normalise(parts.answer) == normalise(answer)
