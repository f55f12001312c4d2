"""Which questions of a suite stand in data that are trained on: shared n-grams of words.

As GPT-3's authors looked for them (arXiv 2005.14165, appendix C: 13-grams of lower-case words without punctuation), but
each question's *share* is told. Of Chinese text a character is a word; numbers of lines say nothing. What all questions
of a suite begin and end with, and n-grams that many of them have, are its instructions, and do not count.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import xxhash

N = 13
COMMON = 0.1  # of the questions: n-grams that more of them share, and more than COMMON_LEAST, are instructions
COMMON_LEAST = 2
_NUMBERED = re.compile(r"^\s*\d+[.):]?\s", re.MULTILINE)
_WORD = re.compile(r"[一-鿿]|[^\W_]+")


class Overlap(NamedTuple):
    """One question in the training data."""

    share: float  # of its n-grams that are there
    row: int  # of the training data, from 0, in which the first of them stands; -1: none


def grams(text: str, n: int = N) -> set[int]:
    """Hashes of a text's n-grams; of a shorter text, of all its words together; none of a text without words."""
    return _hashes(_words(text), n)


def _words(text: str) -> list[str]:
    return _WORD.findall(_NUMBERED.sub("", text).lower())


def _hashes(words: Sequence[str], n: int) -> set[int]:
    count = max(1, len(words) - n + 1) if words else 0
    return {xxhash.xxh3_64_intdigest(" ".join(words[i : i + n]).encode()) for i in range(count)}


def overlaps(questions: Sequence[str], rows: Iterable[str], n: int = N) -> list[Overlap]:
    """Of every question, in their order. ``rows`` are read once, and not kept."""
    words = [_words(question) for question in questions]
    head, tail = _alike(words), _alike([each[::-1] for each in words])
    own = [_hashes(each[head : len(each) - tail] or each, n) for each in words]
    shared = Counter(gram for each in own for gram in each)
    most = max(COMMON * len(questions), COMMON_LEAST)
    own = [{gram for gram in each if shared[gram] <= most} for each in own]
    wanted, found = set().union(*own), dict[int, int]()
    for number, row in enumerate(rows):
        for gram in wanted & grams(row, n):
            found.setdefault(gram, number)
    result = []
    for each in own:
        places = [found[gram] for gram in each if gram in found]
        result.append(Overlap(len(places) / len(each), min(places)) if places else Overlap(0.0, -1))
    return result


def _alike(texts: Sequence[Sequence[str]]) -> int:
    """How many first words all have in common; none where there is one text alone."""
    shortest = min(map(len, texts), default=0)
    places = range(shortest if len(texts) > 1 else 0)
    return next((place for place in places if len({text[place] for text in texts}) > 1), len(places))
