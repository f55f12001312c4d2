"""True statements about a story, as sentences and as what they say of it: what clues and questions are made of."""

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, permutations, product

from megatron_rl.data.tasks.generated import choose
from megatron_rl.data.tasks.temporal_clue.facts import Alike, All, Any, Fact, Statement
from megatron_rl.data.tasks.temporal_clue.story import Story, neighbours, sample

FAMILIES = {  # how late a clue of a family is given up: what is given up late is more often needed
    "murder": 0.0,
    "whereabouts": 0.3,
    "motive": 0.2,
    "move": 0.35,
    "carry": 0.35,
    "same_room": 0.4,
    "beside": 0.4,
    "together": 0.4,
    "one_of_two": 0.4,
    "both_or_neither": 0.4,
}
PER_PLACE = 1  # clues of a family, for each piece at each time, among which the needed ones are looked for
ENOUGH = ("murder", "whereabouts", "motive")  # clues of these are always among those offered: they settle every story
DIRECTIONS = ("north", "south", "east", "west")


@dataclass(frozen=True)
class Clue:
    """A true statement. ``question`` and ``answer``: what it would tell; empty where nobody asks for it."""

    family: str
    text: str
    says: Statement
    question: str = ""
    answer: str = ""


@dataclass(frozen=True)
class Subject:
    """Who or what a sentence is about: a piece by its name, or whoever fits (the murderer, a motive)."""

    text: str  # inside a sentence
    options: tuple[tuple[Fact | None, int], ...]  # on which condition it is which piece
    pieces: tuple[int, ...]  # which it is in the story
    asked: bool = True  # it is one piece, and saying which would give nothing else away

    @property
    def named(self) -> bool:
        return self.options[0][0] is None


def all_clues(story: Story, rng: random.Random, families: Collection[str] = ()) -> list[Clue]:
    """The clues that a puzzle is made from: of some families beside ``ENOUGH``, or (none named) of all."""
    people, things, relative = _subjects(story)
    subjects, limit = [*people, *things, *relative], PER_PLACE * len(story.pieces) * len(story.times)
    times = range(len(story.times))
    clues = [*_murder(story), *_motives(story)]
    whereabouts = [_whereabouts(story, s, p, t) for s in subjects for p in s.pieces for t in times]
    clues += whereabouts
    walkers = [s for s in (*people, *relative) if s.pieces[0] <= story.boddy]
    moves = [_move(story, s, p, t) for s in walkers for p in s.pieces for t in times[1:] if _moved(story, p, t)]
    clues += sample(rng, moves, limit)
    clues += sample(rng, _carried(story, [s for s in walkers if s.pieces[0] != story.boddy], things), limit)
    pairs = [
        (one, other)
        for one, other in permutations(subjects, 2)
        if (one.named or other.named) and not set(one.pieces) & set(other.pieces)
    ]
    clues += sample(rng, [c for t in times for pair in pairs for c in _same_room(story, *pair, t)], limit)
    clues += sample(rng, [c for t in times for pair in pairs for c in _beside(story, *pair, t)], limit)
    if len(times) > 1:
        named = [pair for pair in combinations((*people, *things), 2)]
        clues += sample(rng, [c for pair in named for c in _together(story, *pair)], limit)
    for _ in range(limit):
        clues += _compound(story, rng, subjects)
    wanted = {*ENOUGH, *families} if families else {*FAMILIES}
    return list({clue.text: clue for clue in clues if clue.family in wanted}.values())


def _subjects(story: Story) -> tuple[list[Subject], list[Subject], list[Subject]]:
    """Suspects and Mr. Boddy, weapons, and those that are known by what they did or why."""
    suspects = range(len(story.suspects))
    people = [Subject(name, ((None, i),), (i,)) for i, name in enumerate(story.pieces[: story.boddy + 1])]
    first = story.boddy + 1
    things = [Subject(f"the {name}", ((None, first + i),), (first + i,)) for i, name in enumerate(story.weapons)]
    relative = [
        Subject("the murderer", tuple((Fact("murderer", (s,)), s) for s in suspects), (story.murderer,), False),
        Subject(
            "the murder weapon",
            tuple((Fact("weapon", (w,)), first + w) for w in range(len(story.weapons))),
            (first + story.weapon,),
            False,
        ),
    ]
    for motive, (name, count) in enumerate(zip(story.motives, story.counts, strict=True)):
        options = tuple((Fact("motive", (s, motive)), s) for s in suspects)
        holders = tuple(s for s in suspects if story.motive[s] == motive)
        article = "the" if count == 1 else "a"
        relative.append(Subject(f"{article} suspect motivated by {name}", options, holders, count == 1))
    return people, things, relative


def _about(subject: Subject, says: Callable[[int], Statement]) -> Statement:
    """What is said of a piece, said of a subject: of whichever piece it is."""
    said = [All((condition, says(piece))) if condition else says(piece) for condition, piece in subject.options]
    return said[0] if len(said) == 1 else Any(tuple(said))


def _murder(story: Story) -> list[Clue]:
    """What the questions about the murder ask; who did it is never told."""
    weapon, room, time = story.weapons[story.weapon], story.rooms[story.room], story.times[story.time]
    found = [
        Clue("murder", f"Mr. Boddy was killed with the {weapon}", Fact("weapon", (story.weapon,))),
        Clue("murder", f"Mr. Boddy was murdered {_in(room)}", Fact("room", (story.room,))),
    ]
    if len(story.times) > 1:
        found.append(Clue("murder", f"Mr. Boddy was murdered at {time}", Fact("time", (story.time,))))
    return found


def _motives(story: Story) -> list[Clue]:
    found = []
    for suspect, motive in enumerate(story.motive):
        name, why = story.suspects[suspect], story.motives[motive]
        asked = (f"What motivates {name}?", why) if suspect % 2 else (f"Who is motivated by {why}?", name)
        if story.counts[motive] > 1:
            asked = (f"What motivates {name}?", why)
        found.append(Clue("motive", f"{name} is motivated by {why}", Fact("motive", (suspect, motive)), *asked))
    return found


def _whereabouts(story: Story, subject: Subject, piece: int, time: int) -> Clue:
    room = story.where[piece][time]
    text, says = _place(story, subject, time, room)
    if not subject.asked:
        return Clue("whereabouts", text, says)
    return Clue("whereabouts", text, says, f"Where was {subject.text}{_at(story, time)}?", story.rooms[room])


def _place(story: Story, subject: Subject, time: int, room: int) -> tuple[str, Statement]:
    """That a subject was in a room at a time, true or not."""
    text = _sentence(f"{subject.text} was {_in(story.rooms[room])}{_at(story, time)}")
    return text, _about(subject, lambda piece: Fact("at", (piece, time, room)))


def _moved(story: Story, piece: int, time: int) -> bool:
    return story.where[piece][time - 1] != story.where[piece][time]


def _move(story: Story, subject: Subject, piece: int, time: int) -> Clue:
    start, end = story.where[piece][time - 1], story.where[piece][time]
    text = f"{subject.text} moved from the {story.rooms[start]} to the {story.rooms[end]}{_at(story, time)}"
    return Clue("move", _sentence(text), _about(subject, lambda piece: _went(piece, time, start, end)))


def _went(piece: int, time: int, start: int, end: int) -> Statement:
    return All((Fact("at", (piece, time - 1, start)), Fact("at", (piece, time, end))))


def _carried(story: Story, suspects: Sequence[Subject], weapons: Sequence[Subject]) -> list[Clue]:
    found = []
    for time, suspect in product(range(1, len(story.times)), suspects):
        for piece, weapon in product(suspect.pieces, weapons):
            start, end = story.where[piece][time - 1], story.where[piece][time]
            thing = weapon.pieces[0]
            if start == end or (story.where[thing][time - 1], story.where[thing][time]) != (start, end):
                continue
            way = f"from the {story.rooms[start]} to the {story.rooms[end]}{_at(story, time)}"
            says = _about(suspect, partial(_took, thing, time, start, end))
            found.append(Clue("carry", _sentence(f"{suspect.text} moved {weapon.text} {way}"), says))
    return found


def _took(thing: int, time: int, start: int, end: int, piece: int) -> Statement:
    return All((_went(piece, time, start, end), _went(thing, time, start, end)))


def _same_room(story: Story, one: Subject, other: Subject, time: int) -> list[Clue]:
    if story.where[one.pieces[0]][time] != story.where[other.pieces[0]][time]:
        return []
    text = f"{one.text} was in the same room as {other.text}{_at(story, time)}"
    pairs = [(room, room) for room in range(len(story.rooms))]
    return [Clue("same_room", _sentence(text), _related(one, other, time, pairs))]


def _beside(story: Story, one: Subject, other: Subject, time: int) -> list[Clue]:
    here, there = story.where[one.pieces[0]][time], story.where[other.pieces[0]][time]
    for direction, pairs in zip(DIRECTIONS, _directions(len(story.rooms), story.columns), strict=True):
        if (here, there) in pairs:
            text = f"{one.text} was in the room just {direction} of {other.text}{_at(story, time)}"
            return [Clue("beside", _sentence(text), _related(one, other, time, pairs))]
    return []


def _directions(rooms: int, columns: int) -> list[list[tuple[int, int]]]:
    """The pairs of rooms of which the first is just north, south, east, west of the second."""
    beside = [(here, there) for there in range(rooms) for here in neighbours(rooms, columns)[there]]
    vertical = [(a, b) for a, b in beside if a % columns == b % columns and a // columns != b // columns]
    level = [(a, b) for a, b in beside if a // columns == b // columns]
    return [
        [(a, b) for a, b in vertical if a < b],
        [(a, b) for a, b in vertical if a > b],
        [(a, b) for a, b in level if a > b],
        [(a, b) for a, b in level if a < b],
    ]


def _related(one: Subject, other: Subject, time: int, pairs: Sequence[tuple[int, int]]) -> Statement:
    """That the rooms of two subjects are one of the pairs."""

    def of(a: int, b: int) -> Statement:
        return Any(tuple(All((Fact("at", (a, time, r)), Fact("at", (b, time, q)))) for r, q in pairs))

    return _about(one, lambda a: _about(other, lambda b: of(a, b)))


def _together(story: Story, one: Subject, other: Subject) -> list[Clue]:
    a, b = one.pieces[0], other.pieces[0]
    met = {ra for ra, rb in zip(story.where[a], story.where[b], strict=True) if ra == rb}
    return [
        Clue(
            "together",
            _sentence(f"{one.text} and {other.text} were {_in(story.rooms[room])} together at least once"),
            Any(
                tuple(
                    All((Fact("at", (a, time, room)), Fact("at", (b, time, room)))) for time in range(len(story.times))
                )
            ),
        )
        for room in sorted(met)
    ]


def _compound(story: Story, rng: random.Random, subjects: Sequence[Subject]) -> list[Clue]:
    """Two places of which one is right, and two that are both right or both wrong, of random subjects and times."""
    drawn = [(choose(rng, subjects), int(rng.random() * len(story.times))) for _ in range(2)]
    said = [_right_and_wrong(story, rng, subject, time) for subject, time in drawn]
    if len(said[0]) + len(said[1]) < 4 or drawn[0][0] is drawn[1][0]:
        return []
    (right, wrong), (too, neither) = said
    first, second = (right, neither) if rng.random() < 0.5 else (wrong, too)
    a, b = (right, too) if rng.random() < 0.5 else (wrong, neither)
    return [
        Clue("one_of_two", f"{first[0]} or {_inner(second[0])}, but not both", Alike(first[1], second[1], True)),
        Clue("both_or_neither", f"{a[0]} if and only if {_inner(b[0])}", Alike(a[1], b[1])),
    ]


def _right_and_wrong(story: Story, rng: random.Random, subject: Subject, time: int) -> list[tuple[str, Statement]]:
    """A place where a subject was and one where it was not; the first alone where there is no other."""
    right = [story.where[piece][time] for piece in subject.pieces]
    wrong = [room for room in range(len(story.rooms)) if room not in right]
    return [_place(story, subject, time, room) for room in (right[0], *([choose(rng, wrong)] if wrong else []))]


def _in(room: str) -> str:
    return f"at the {room}" if room == "Fountain" else f"in the {room}"


def _at(story: Story, time: int) -> str:
    return f" at {story.times[time]}" if len(story.times) > 1 else ""


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _inner(sentence: str) -> str:
    """A sentence inside another: names keep their capital letter."""
    article, space, rest = sentence.partition(" ")
    return f"{article.lower()}{space}{rest}" if article in ("The", "A") else sentence
