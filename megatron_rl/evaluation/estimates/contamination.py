"""Which questions of a suite stand in data that are trained on: shared n-grams of words.

As GPT-3's authors looked for them (arXiv 2005.14165, appendix C: 13-grams of lower-case words without punctuation), but
each question's *share* is told, and line by line, as a prompt has labels and instructions between what are columns of a
row: n-grams of each line, and a shorter line whole. Of Chinese text a character is a word; numbers and labels of lines
say nothing. What all questions of a suite begin and end with, and n-grams that many of them have, are its instructions,
and do not count.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import xxhash

N = 13
LEAST = 4  # words of a line that can be looked for: shorter ones stand in any text
COMMON = 0.1  # of the questions: n-grams that more of them share, and more than COMMON_LEAST, are instructions
COMMON_LEAST = 2
_NUMBERED = re.compile(r"^\s*\d+[.):]?\s", re.MULTILINE)
_LABEL = re.compile(r"^\s*(?:\(?[A-Za-z]\)?[.):：]|[^\W\d][^\W_]*(?: [^\W_]+){0,2}[:：])\s*")  # "Story:", "B.", "(b)"
_WORD = re.compile(r"[一-鿿]|[^\W_]+")


class Overlap(NamedTuple):
    """One question in the training data."""

    share: float  # of its n-grams that are there
    row: int  # of the training data, from 0, in which the first of them stands; -1: none


def too_short(question: str, n: int = N) -> bool:
    """Whether a question has too few words to be looked for."""
    return len(_words(question)) < min(LEAST, n)


def _words(text: str) -> list[str]:
    return _WORD.findall(_NUMBERED.sub("", text).lower())


def _lines(text: str) -> list[list[str]]:
    return [_words(_LABEL.sub("", line)) for line in text.split("\n")]


def _inner(lines: Sequence[list[str]], begin: int, end: int, n: int) -> list[list[str]]:
    """The lines without those outside of words ``begin`` to ``end``, counted through; one that is cut there is whole
    where less than ``n`` words of it would be left."""
    found, at = [], 0
    for line in lines:
        inner = line[max(begin - at, 0) : max(end - at, 0)]
        at += len(line)
        if inner:
            found.append(inner if len(inner) >= n else line)
    return found


def _hash(words: Sequence[str]) -> int:
    return xxhash.xxh3_64_intdigest(" ".join(words).encode())


def _grams(words: Sequence[str], n: int) -> set[int]:
    return {_hash(words[i : i + n]) for i in range(len(words) - n + 1)}


def overlaps(questions: Sequence[str], rows: Iterable[str], n: int = N) -> list[Overlap]:
    """Of every question, in their order; nothing of one that is ``too_short``. ``rows`` are read once, and not kept."""
    lines, least = [_lines(question) for question in questions], min(LEAST, n)
    words = [[word for line in each for word in line] for each in lines]
    head, tail = _alike(words), _alike([each[::-1] for each in words])
    own = list[set[int]]()
    short = dict[int, set[int]]()  # of what is looked for whole: lengths, by how it begins
    for each, whole in zip(lines, words, strict=True):
        parts = [part for part in _inner(each, head, len(whole) - tail, n) if len(part) >= least]
        parts = parts or [whole] * (len(whole) >= least)
        grams = set[int]()
        for part in parts:
            if len(part) >= n:
                grams |= _grams(part, n)
            else:
                grams.add(_hash(part))
                short.setdefault(_hash(part[:least]), set()).add(len(part))
        own.append(grams)
    shared = Counter(gram for each in own for gram in each)
    most = max(COMMON * len(questions), COMMON_LEAST)
    own = [{gram for gram in each if shared[gram] <= most} for each in own]
    wanted, found = set().union(*own), dict[int, int]()
    for number, row in enumerate(rows):
        there = _words(row)
        grams = _grams(there, n)
        for i in range(len(there) - least + 1 if short else 0):
            grams |= {_hash(there[i : i + size]) for size in short.get(_hash(there[i : i + least]), ())}
        for gram in wanted & grams:
            found.setdefault(gram, number)
    result = []
    for wanted in own:
        places = [found[gram] for gram in wanted if gram in found]
        result.append(Overlap(len(places) / len(wanted), min(places)) if places else Overlap(0.0, -1))
    return result


def _alike(texts: Sequence[Sequence[str]]) -> int:
    """How many first words all have in common; none where there is one text alone."""
    shortest = min(map(len, texts), default=0)
    places = range(shortest if len(texts) > 1 else 0)
    return next((place for place in places if len({text[place] for text in texts}) > 1), len(places))
