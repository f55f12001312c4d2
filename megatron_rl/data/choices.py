"""The options of a multiple-choice question: read from the row, or derived where a row has a free-text answer only."""

import ast
import re
from collections.abc import Iterable, Sequence
from typing import Any

import xxhash

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
DERIVED = 4  # options of a question that has none of its own

_PLACE = r"(?-i:the (\w[\w' -]*?)(?=[.,;?]|$| now\b| for \d| [A-Z]))"
_MOVED = re.compile(r"\bmoved (?:the )?(\w[\w', -]*?) to " + _PLACE + r"(?!, leaving)")
_IS_IN = re.compile(r"\bThe (\w[\w', -]*?) (?:is|are|was|were) in " + _PLACE)
_SAID = re.compile(r"\bthat (?:the )?(\w[\w', -]*?) (?:is|are|was|were) in " + _PLACE)
_ROOM = re.compile(r"\b(?:entered|left|exited|stayed in|located in) " + _PLACE)
_LEAVING = re.compile(r"\bmoved (?:the )?\w[\w', -]*? to " + _PLACE + r", leaving")
Places = tuple[list[str], list[str], list[str]]
_MARKER = re.compile(r"(?:^|(?<=[\s,;(]))\(?([A-Z])[.):]\s+")


def listed(value: Any) -> list[str]:
    """Options out of a cell: a list, a letter -> text mapping, {"text": […]}, a list as text, or "A. x, B. y".

    Trailing empty options are left out; a letter that repeats an option's own place ("B. shelf") is taken off.
    """
    if isinstance(value, str):
        value = _literal(value) if value.lstrip().startswith("[") else lettered(value)[1]
    if isinstance(value, dict):
        inner = value.get("text")
        value = inner if isinstance(inner, Sequence) and not isinstance(inner, str) else _by_letter(value)
    texts = [text(v) for v in value] if value is not None else []
    while texts and not texts[-1]:
        texts.pop()
    return [re.sub(rf"^\(?{letter}[.):]\s+", "", t) for letter, t in zip(LETTERS, texts, strict=False)]


def lettered(passage: str) -> tuple[str, list[str]]:
    """A passage that ends in "… A. x, B. y": what stands before A, and the options ([] when there are no two)."""
    marks: list[re.Match[str]] = []
    for found in _MARKER.finditer(passage):
        if found.group(1) == LETTERS[len(marks) : len(marks) + 1]:
            marks.append(found)
    if len(marks) < 2:
        return passage, []
    ends = [m.start() for m in marks[1:]] + [len(passage)]
    options = [passage[m.end() : end].strip().rstrip(",;").strip() for m, end in zip(marks, ends, strict=True)]
    return passage[: marks[0].start()].rstrip(), options


def answer_index(answer: str, options: list[str]) -> int | None:
    """Which option is meant by its text or by its letter, "B", "(B)" or "B."; None: neither, or two of them."""
    same = [i for i, option in enumerate(options) if normal(option) == normal(answer)]
    if same:
        return same[0] if len(same) == 1 else None
    letter = re.fullmatch(r"\(?([A-Z])[).:]?", answer)
    index = LETTERS.index(letter.group(1)) if letter else len(options)
    return index if index < len(options) else None


def places(story: str, question: str) -> Places:
    """Places that a story of moved objects mentions: containers of the object asked for, other containers, rooms.

    Reads the sentence forms of ToMi, Hi-ToM and ExploreToM ("moved the O to the P", "the O is in the P", "entered
    the R"). A pantry can be both, container and room.
    """
    rooms = [*_ROOM.findall(story), *_LEAVING.findall(story)]
    room_names = {normal(r) for r in rooms}
    held = [*_MOVED.findall(story), *_IS_IN.findall(story)]
    held += [(thing, place) for thing, place in _SAID.findall(story) if normal(place) not in room_names]
    asked = max((thing for thing, _ in held if thing.lower() in question.lower()), key=len, default="")
    own = _distinct([place for thing, place in held if thing == asked])
    return own, _distinct([place for _, place in held], own), _distinct(rooms)


def kind(question: str, answer: str, groups: Places) -> str:
    """Whether the story makes the answer a "container", a "room", or neither ("")."""
    own, other, rooms = ({normal(p) for p in group} for group in groups)
    room, container = normal(answer) in rooms, normal(answer) in own | other
    if room and container:
        return "room" if "which room" in question.lower() else "container"
    return "room" if room else "container" if container else ""


def derive(answer: str, near: Sequence[Sequence[str]], others: Sequence[str], key: str) -> list[str]:
    """Up to ``DERIVED`` options with the answer among them; which and in which order depends on ``key``.

    Distractors come from the groups of ``near``, one group after the other, then from ``others``. One option alone
    means that there was no distractor.
    """
    # A window of the others is enough: at most DERIVED - 1 of them can equal the answer or a nearer distractor.
    first = xxhash.xxh3_64_intdigest(key.encode()) % max(len(others), 1)
    window = [others[(first + i) % len(others)] for i in range(min(len(others), 2 * DERIVED))]
    ranked = [answer, *(item for group in (*near, window) for item in shuffled(group, key))]
    return shuffled(_distinct(ranked)[:DERIVED], f"{key}/order")


def shuffled(items: Iterable[str], key: str) -> list[str]:
    """In an order that depends on the items and on ``key`` alone."""
    return sorted(items, key=lambda item: xxhash.xxh3_64_intdigest(f"{key}/{item}".encode()))


def normal(value: str) -> str:
    """Case, white space, a leading "the" and a final full stop do not distinguish answers."""
    return " ".join(value.split()).removesuffix(".").casefold().removeprefix("the ")


def text(value: Any) -> str:
    """A cell as text; missing values are empty."""
    return "" if value is None or value != value else str(value).strip()


def _distinct(items: Iterable[str], without: Iterable[str] = ()) -> list[str]:
    seen, kept = {normal(item) for item in without}, []
    for item in items:
        if normal(item) not in seen:
            kept.append(item)
            seen.add(normal(item))
    return kept


def _literal(value: str) -> Any:
    try:
        return ast.literal_eval(value.strip())  # reads JSON's lists of texts too
    except (ValueError, SyntaxError):
        return None


def _by_letter(value: dict[str, Any]) -> list[Any]:
    return [value[k] for k in sorted(value)]
