"""Which option of a multiple-choice question a completion chooses. Plain text in, plain text out, in linear time."""

import re
from collections.abc import Sequence

from megatron_rl.data.answers.exact_answer import given
from megatron_rl.data.answers.think_answer import THINK, THINK_END

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_DOUBLE = re.compile(r"\[\[\s*\(?([A-Z])\)?\s*\]\]")
_SAID = re.compile(r"\b(?:answer|choice|option)\b(?: is|:)?[\s*:]*\(?([A-Z])(?![\w'])", re.IGNORECASE)
_MARKED = re.compile(r"(?<![\w(])\(?([A-Z])(?:[.):]|\)[.:]?)(?!\w)|^\s*([A-Z])\s*$", re.MULTILINE)


def bracketed(text: str) -> tuple[str, bool]:
    """ToMBench's rule (github.com/zhchen18/ToMBench, ``get_results.py``) and whether the form ``[[A]]`` is there.

    The first of A, B, C, D that stands as ``[[A]]`` anywhere, else as ``[A]``, else the last of these letters in the
    text, in whatever word, else A.
    """
    for form in ("[[{}]]", "[{}]"):
        for letter in "ABCD":
            if form.format(letter) in text:
                return letter, form.startswith("[[")
    last = max(text.rfind(letter) for letter in "ABCD")
    return (text[last] if last >= 0 else "A"), False


def chosen(text: str, options: Sequence[str]) -> tuple[str, bool]:
    """The letter of the option chosen after the thinking, "" for none, and whether it stands in a form of its own.

    Forms: the last ``[[A]]``, ``<answer>…</answer>`` or ``\\boxed{…}``, with a letter or the option's text in it. Else
    the last "answer is A", else the first ``A.``, ``(A)`` or text of an option: models that answer before they explain.
    """
    text = after_thinking(text)
    letters = LETTERS[: len(options)]
    doubles = [letter for letter in _DOUBLE.findall(text) if letter in letters]
    if doubles:
        return doubles[-1], True
    inside = given(text, ("tag", "boxed"))
    if inside is not None and (letter := named(inside, options)):
        return letter, True
    said = [letter.upper() for letter in _SAID.findall(text) if letter.upper() in letters]
    if said:
        return said[-1], False
    places = [(m.start(), m[1] or m[2]) for m in _MARKED.finditer(text) if (m[1] or m[2]) in letters][:1]
    lower = text.casefold()
    places += [(at, letters[i]) for i, option in enumerate(options) if (at := _word(lower, option.casefold())) >= 0]
    return (min(places)[1] if places else ""), False


def named(answer: str, options: Sequence[str]) -> str:
    """The letter of the option that an answer is: its text, or its letter alone or before its text; "" for none."""
    plain = " ".join(answer.split()).strip(" .*").casefold()
    for letter, option in zip(LETTERS, options, strict=False):
        if plain == " ".join(option.split()).strip(" .").casefold():
            return letter
    match = re.match(r"\(?([A-Z])(?:[.):]|\s*$)", answer.strip(" .*"))
    return match[1] if match and match[1] in LETTERS[: len(options)] else ""


def after_thinking(text: str) -> str:
    """What follows the last ``</think>``; nothing where the thinking has no end; else all of it."""
    if THINK_END in text:
        return text[text.rindex(THINK_END) + len(THINK_END) :]
    return "" if text.lstrip().startswith(THINK) else text


def _word(text: str, word: str) -> int:
    """The first place of a word that is no part of another; -1 for none."""
    at = text.find(word) if word else -1
    while at >= 0:
        before, after = text[at - 1 : at], text[at + len(word) : at + len(word) + 1]
        if not (before.isalnum() or before == "_" or after.isalnum() or after == "_"):
            return at
        at = text.find(word, at + 1)
    return -1
