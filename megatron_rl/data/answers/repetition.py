"""Whether a text repeats itself."""

import re
from itertools import pairwise

GRAM = 16  # characters
WINDOW = 10  # characters
PIECE = 20  # characters that a piece has at least
ALIKE = 0.85  # Jaccard similarity
_ENDS = re.compile(r"[\n.。]")
_CHINESE = re.compile("[一-鿿]")


def repeat_ratio(text: str, gram: int = GRAM) -> float:
    """(N - distinct) / N over the character n-grams of a text; 0 for a text that is shorter than one."""
    total = len(text) - gram + 1
    if total < 1:
        return 0.0
    return (total - len({text[i : i + gram] for i in range(total)})) / total


def repeats(text: str) -> bool:
    """SimpleRL-Zoo's verdict (arXiv 2503.18892): two neighbouring windows of 10 characters are alike, or two
    neighbouring pieces of 20 or more between "\\n", "." and "。" are.

    Alike: a Jaccard similarity of 0.85 or more of their words where a text has spaces and line breaks, else of their
    characters. (Theirs cuts Chinese into words with jieba; here it is characters.)
    """
    windows = [text[i : i + WINDOW] for i in range(0, len(text) - WINDOW + 1, WINDOW)]
    pieces = [piece for piece in _ENDS.split(text) if len(piece) >= PIECE]
    return any(_alike(one, other) for some in (windows, pieces) for one, other in pairwise(some))


def _alike(one: str, other: str) -> bool:
    a, b = _tokens(one), _tokens(other)
    return bool(a or b) and len(a & b) / len(a | b) >= ALIKE


def _tokens(text: str) -> set[str]:
    words = " " in text and "\n" in text and not _CHINESE.search(text)
    return set(text.split()) if words else set(text)
