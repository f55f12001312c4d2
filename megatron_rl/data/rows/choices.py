"""The options of a multiple-choice question: read from the row, or derived where a row has a free-text answer only."""

import ast
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import xxhash

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
DERIVED = 4  # options of a question that has none of its own
TOM_RL = ("hi_tom", "explore_tom", "tomi")  # values of data_source whose free-text answers are meant to be derived from

_PLACE = r"(?-i:the (\w[\w' -]*?)(?=[.,;?]|$| now\b| for \d| [A-Z]))"
_MOVED = re.compile(r"\bmoved (?:the )?(\w[\w', -]*?) to " + _PLACE + r"(?!, leaving)")
_IS_IN = re.compile(r"\bThe (\w[\w', -]*?) (?:is|are|was|were) in " + _PLACE)
_SAID = re.compile(r"\bthat (?:the )?(\w[\w', -]*?) (?:is|are|was|were) in " + _PLACE)
_ROOM = re.compile(r"\b(?:entered|left|exited|stayed in|located in) " + _PLACE)
_LEAVING = re.compile(r"\bmoved (?:the )?\w[\w', -]*? to " + _PLACE + r", leaving")
Places = tuple[list[str], list[str], list[str]]
_MARKER = re.compile(r"(?:^|(?<=[\s,;(]))\(?([A-Z])[.):]\s+")


class Listed(NamedTuple):
    """The texts of the options, and what the file calls them: as many labels as texts, or none."""

    texts: list[str]
    labels: list[str]


def listed(value: Any) -> Listed:
    """Options out of a cell: a list of texts, of {"label": …, "text": …} or of {label: text}; a label -> text mapping;
    {"text": […], "label": […]}; one of these as text; or "A. x, B. y".

    Options that have letters or numbers as labels come in the order of those. Trailing empty options are left out; a
    letter that repeats an option's own place ("B. shelf") is taken off. Raises ValueError for objects of another form.
    """
    if isinstance(value, str):
        value = _literal(value) if value.lstrip()[:1] in ("[", "{") else lettered(value)[1]
    pairs = _pairs(value.tolist() if hasattr(value, "tolist") else value)
    if all(re.fullmatch(r"[A-Za-z]", label) for label, _ in pairs):
        pairs.sort(key=lambda pair: pair[0].upper())
    elif all(label.isdecimal() for label, _ in pairs):
        pairs.sort(key=lambda pair: int(pair[0]))
    while pairs and not pairs[-1][1]:
        pairs.pop()
    texts, labels = [t for _, t in pairs], [label for label, _ in pairs]
    if any(labels) and ("" in labels or len(set(labels)) < len(labels)):
        raise ValueError(f"the labels of the options are {labels}; each option needs one of its own, or none has any")
    without = [re.sub(rf"^\(?{letter}[.):]\s+", "", t) for letter, t in zip(LETTERS, texts, strict=False)]
    return Listed(without, labels if any(labels) else [])


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


def answer_index(answer: str, options: Sequence[str], labels: Sequence[str] = ()) -> int | None:
    """Which option is meant by its text, by its label, or by its letter: "B", "b", "(B)" or "B."; None: none of them,
    or two. Without labels, a text goes before a letter."""
    same = {i for i, option in enumerate(options) if normal(option) == normal(answer)}
    same |= {i for i, label in enumerate(labels) if label.casefold() == _bare(answer).casefold()}
    letter = _bare(answer).upper()
    if not same and re.fullmatch(r"[A-Z]", letter) and not any(label.isalpha() for label in labels):
        same = {LETTERS.index(letter)} & set(range(len(options)))
    return same.pop() if len(same) == 1 else None


def counts_from(answers: Sequence[tuple[str, int]]) -> int | None:
    """Whether numbers that name options count from 0 or from 1; None where they do not show it.

    ``answers`` are all numbers of a file, each with how many options its question has. A 0 shows the one, a number as
    large as that of the options the other.
    """
    numbers = [(number(answer), count) for answer, count in answers]
    zero, last = any(n == 0 for n, _ in numbers), any(n == count for n, count in numbers)
    return None if zero == last else 1 if last else 0


def number(answer: str) -> int | None:
    """An answer that is a whole number; a column of numbers with gaps holds 2 as 2.0."""
    found = re.fullmatch(r"(\d{1,2})(\.0)?", answer)
    return int(found[1]) if found else None


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
    """A cell as text; missing values are empty. Raises ValueError for lists, objects and bytes, which are no text."""
    if isinstance(value, list | tuple | Mapping | bytes):
        kind = "an object" if isinstance(value, Mapping) else "bytes" if isinstance(value, bytes) else "a list"
        shown = str(value)
        raise ValueError(f"{kind} where a text is needed: {shown if len(shown) <= 200 else shown[:200] + '…'}")
    return "" if value is None or value != value else str(value).strip()


def _distinct(items: Iterable[str], without: Iterable[str] = ()) -> list[str]:
    seen, kept = {normal(item) for item in without}, []
    for item in items:
        if normal(item) not in seen:
            kept.append(item)
            seen.add(normal(item))
    return kept


LABELS, TEXTS = ("label", "key", "id", "letter"), ("text", "content", "value")


def _pairs(value: Any) -> list[tuple[str, str]]:
    """(label or "", text) of every option of a cell."""
    if value is None:
        return []
    if isinstance(value, Mapping):
        texts, labels = _field(value, TEXTS), _field(value, LABELS)
        if isinstance(texts, list):
            labels = labels if isinstance(labels, list) else [""] * len(texts)
            if len(labels) != len(texts):
                raise ValueError(f"there are {len(texts)} option texts and {len(labels)} labels")
            return [(_bare(text(label)), text(t)) for label, t in zip(labels, texts, strict=True)]
        return [(_bare(str(label)), text(t)) for label, t in value.items()]
    return [_pair(option) for option in value] if isinstance(value, list) else []


def _pair(option: Any) -> tuple[str, str]:
    if not isinstance(option, Mapping):
        return "", text(option)
    label, content = _field(option, LABELS), _field(option, TEXTS)
    if content is None and len(option) == 1:
        ((label, content),) = option.items()
    if content is None:
        raise ValueError(f"an option is {dict(option)}")
    return _bare(text(label)), text(content)


def _bare(label: str) -> str:
    """A label without the marks around it: (A), A) and A. are A."""
    found = re.fullmatch(r"\(?(\w+)[).:]?", label)
    return found[1] if found else label


def _field(option: Mapping[str, Any], names: Iterable[str]) -> Any:
    return next((option[name] for name in names if option.get(name) is not None), None)


def _literal(value: str) -> Any:
    """A list or object written as JSON or as Python; numbers in it keep their text (1.50 is not 1.5)."""
    try:
        return json.loads(value, parse_float=str, parse_int=str)
    except ValueError:
        pass
    try:
        return _node(ast.parse(value.strip(), mode="eval").body, value.strip())
    except (ValueError, SyntaxError, RecursionError):
        return None


def _node(node: ast.expr, source: str) -> Any:
    if isinstance(node, ast.List | ast.Tuple):
        return [_node(element, source) for element in node.elts]
    if isinstance(node, ast.Dict):
        keys = [_node(key, source) if key else None for key in node.keys]
        return dict(zip(keys, (_node(v, source) for v in node.values), strict=True))
    value = ast.literal_eval(node)
    return value if isinstance(value, str) or value is None else ast.get_source_segment(source, node)
