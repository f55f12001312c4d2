"""Answers to lettered questions, a line for each: ``A. Colonel Mustard``.

The rule is that of OpenPipe's grader for Temporal Clue (github.com/OpenPipe/deductive-reasoning, lib/temporal_clue.py):
of a letter the last match of ``LETTER\\. ([A-Za-z \\.:-]+)`` anywhere in the completion, compared without regard to
case and outer spaces. Digits are missing there, so no time can be right; otherwise they are among the characters here.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

_RUNS = {True: re.compile(r"[A-Za-z .:-]+"), False: re.compile(r"[A-Za-z0-9 .:-]+")}


def given(text: str, letters: Iterable[str], strict_upstream: bool = False) -> dict[str, str]:
    """Letter -> the answer that a completion gives; letters without an answer are missing.

    Linear in the length: a match lies in one run of the characters, begins at the run's first ``LETTER. `` and goes on
    to its end.
    """
    runs = _RUNS[strict_upstream].findall(text)
    found = {}
    for letter in letters:
        for run in reversed(runs):
            start = run.find(f"{letter}. ") + len(letter) + 2
            if len(letter) + 2 <= start < len(run):
                found[letter] = run[start:].strip()
                break
    return found


def shares(text: str, solution: Any, strict_upstream: bool = False) -> tuple[float, float]:
    """The share of the questions whose answer is right, and of those that have one.

    ``solution``: letter -> right answer. Raises ValueError where it is something else.
    """
    if not isinstance(solution, Mapping) or not solution:
        raise ValueError(f"the solution is {solution!r}; it must be an object of letters with their answers")
    found = given(text, solution, strict_upstream)
    right = sum(found.get(letter, "").lower() == str(answer).strip().lower() for letter, answer in solution.items())
    return right / len(solution), len(found) / len(solution)
