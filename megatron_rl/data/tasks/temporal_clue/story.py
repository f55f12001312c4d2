"""One night in the mansion: who was where at what time, and the murder; drawn at random.

The game is that of OpenPipe's Temporal Clue (github.com/bradhilton/temporal-clue): suspects and Mr. Boddy stay or move
to a room beside theirs, and suspects may take weapons along. The murderer was alone with Mr. Boddy, and a weapon.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil, isqrt

import xxhash

from megatron_rl.data.tasks.generated import T, choose
from megatron_rl.data.tasks.temporal_clue.facts import Fact

BODDY = "Mr. Boddy"
MINUTES = (15, 30, 60)  # between two times
MOST_TIMES = 12
MIDNIGHT = 24 * 60
MOVE = 0.5  # of a character, at each time
CARRY = 0.8  # of a weapon, when somebody leaves its room
DISTINCT_MOTIVES = 0.5  # of puzzles; in the others several suspects may have the same one


@dataclass(frozen=True)
class Names:
    """What things may be called."""

    suspects: tuple[str, ...]
    weapons: tuple[str, ...]
    rooms: tuple[str, ...]
    motives: tuple[str, ...]

    def first(self, count: int) -> "Names":
        """The first so many of each; 0: all."""
        return Names(*(names[: count or None] for names in (self.suspects, self.weapons, self.rooms, self.motives)))


NAMES = Names(
    (
        *("Miss Scarlet", "Mr. Green", "Mrs. White", "Mrs. Peacock", "Colonel Mustard", "Professor Plum", "Miss Peach"),
        *("Sgt. Gray", "Monsieur Brunette", "Madame Rose"),
    ),
    ("Candlestick", "Knife", "Lead Pipe", "Revolver", "Rope", "Wrench", "Horseshoe", "Poison"),
    (
        *("Hall", "Lounge", "Dining Room", "Kitchen", "Ballroom", "Conservatory", "Billiard Room", "Library", "Study"),
        *("Carriage House", "Cloak Room", "Trophy Room", "Drawing Room", "Gazebo", "Courtyard", "Fountain", "Studio"),
    ),
    ("Revenge", "Jealousy", "Greed", "Fear", "Power", "Betrayal", "Anger", "Ambition", "Hatred", "Pride"),
)
WORDS = Names(  # one for each: titles and kinds of rooms are left out
    tuple(name.split()[-1] for name in NAMES.suspects),
    tuple(name.split()[-1] for name in NAMES.weapons),
    tuple(name.split()[0] for name in NAMES.rooms),
    NAMES.motives,
)


@dataclass(frozen=True)
class Size:
    """How many of each there are. Without motives nobody asks for them."""

    suspects: int
    weapons: int
    rooms: int
    times: int
    motives: int


@dataclass(frozen=True)
class Story:
    """What is true. Things are numbered as they are named; pieces are the suspects, Mr. Boddy, then the weapons."""

    suspects: tuple[str, ...]
    weapons: tuple[str, ...]
    rooms: tuple[str, ...]
    columns: int  # of the board, which is filled row by row
    times: tuple[str, ...]
    motives: tuple[str, ...]  # that somebody has
    motive: tuple[int, ...]  # of each suspect; empty without motives
    where: tuple[tuple[int, ...], ...]  # [piece][time] -> room
    murderer: int
    weapon: int
    room: int
    time: int

    @property
    def boddy(self) -> int:
        """Mr. Boddy's number among the pieces."""
        return len(self.suspects)

    @property
    def pieces(self) -> tuple[str, ...]:
        return (*self.suspects, BODDY, *self.weapons)

    @property
    def counts(self) -> tuple[int, ...]:
        """How many suspects have each motive."""
        return tuple(self.motive.count(motive) for motive in range(len(self.motives)))

    @cached_property
    def facts(self) -> dict[Fact, int]:
        """The facts that hold, as ``evaluate`` takes them for this story alone."""
        found = [
            Fact("murderer", (self.murderer,)),
            Fact("weapon", (self.weapon,)),
            Fact("room", (self.room,)),
            Fact("time", (self.time,)),
        ]
        found += [Fact("motive", (suspect, motive)) for suspect, motive in enumerate(self.motive)]
        found += [
            Fact("at", (piece, time, room)) for piece, rooms in enumerate(self.where) for time, room in enumerate(rooms)
        ]
        return dict.fromkeys(found, 1)


def draw_story(rng: random.Random, size: Size, names: Names, heldout: bool = False) -> Story:
    """A story of a size that ``unsolvable`` finds nothing wrong with; one that is held out is never trained on."""
    while is_heldout(story := _draw(rng, size, names)) != heldout:
        pass
    return story


def is_heldout(story: Story) -> bool:
    """A fifth of all stories is kept for evaluation."""
    return xxhash.xxh3_64_intdigest(repr(story).encode()) % 5 == 0


def _draw(rng: random.Random, size: Size, names: Names) -> Story:
    low = isqrt(size.rooms)
    columns = low if rng.random() < 0.5 else ceil(size.rooms / low)
    near = neighbours(size.rooms, columns)
    occasions: list[tuple[int, int]] = []
    while not occasions:
        where = _wander(rng, size, near)
        occasions = [(s, t) for t in range(size.times) for s in range(size.suspects) if _alone(where, size, s, t)]
    murderer, time = choose(rng, occasions)
    room = where[murderer][time]
    motives, motive = _draw_motives(rng, size, names.motives)
    return Story(
        suspects=tuple(sample(rng, names.suspects, size.suspects)),
        weapons=tuple(sample(rng, names.weapons, size.weapons)),
        rooms=tuple(sample(rng, names.rooms, size.rooms)),
        columns=columns,
        times=_draw_times(rng, size.times),
        motives=motives,
        motive=motive,
        where=tuple(map(tuple, where)),
        murderer=murderer,
        weapon=choose(rng, [w for w in range(size.weapons) if where[size.suspects + 1 + w][time] == room]),
        room=room,
        time=time,
    )


def neighbours(rooms: int, columns: int) -> list[list[int]]:
    """Of each room, those to the north, south, east and west."""
    found = []
    for room in range(rooms):
        beside = [room - columns, room + columns]
        beside += [room + 1] if (room + 1) % columns else []
        beside += [room - 1] if room % columns else []
        found.append([other for other in beside if 0 <= other < rooms])
    return found


def unsolvable(size: Size) -> str:
    """Why there are no puzzles of a size, as a clause; "" when there are."""
    if size.suspects > 1 and size.rooms == 1:
        return f"{size.suspects} suspects in one room are never alone with Mr. Boddy, so there is no murder"
    return ""


def sample(rng: random.Random, items: Sequence[T], count: int) -> list[T]:
    """So many different items in a random order, the same in every Python version."""
    return shuffled(rng, items)[:count]


def shuffled(rng: random.Random, items: Sequence[T]) -> list[T]:
    """All items in a random order, the same in every Python version."""
    return [item for _, item in sorted(((rng.random(), item) for item in items), key=lambda pair: pair[0])]


def _wander(rng: random.Random, size: Size, near: list[list[int]]) -> list[list[int]]:
    """Rooms by piece and time."""
    pieces = size.suspects + 1 + size.weapons
    where = [[int(rng.random() * size.rooms)] for _ in range(pieces)]
    for time in range(1, size.times):
        for piece in range(size.suspects + 1):
            here = where[piece][-1]
            where[piece].append(choose(rng, near[here]) if near[here] and rng.random() < MOVE else here)
        for piece in range(size.suspects + 1, pieces):
            here = where[piece][-1]
            leaving = [s for s in range(size.suspects) if where[s][time - 1] == here != where[s][time]]
            taken = bool(leaving) and rng.random() < CARRY
            where[piece].append(where[choose(rng, leaving)][time] if taken else here)
    return where


def _alone(where: list[list[int]], size: Size, suspect: int, time: int) -> bool:
    """Whether a suspect and Mr. Boddy are alone in a room with a weapon."""
    room = where[suspect][time]
    others = [where[s][time] for s in range(size.suspects) if s != suspect]
    weapons = [rooms[time] for rooms in where[size.suspects + 1 :]]
    return where[size.suspects][time] == room and room not in others and room in weapons


def _draw_motives(rng: random.Random, size: Size, known: Sequence[str]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The motives that somebody has, and which one each suspect has."""
    if not size.motives:
        return (), ()
    names = sample(rng, known, size.motives)
    if size.motives >= size.suspects and rng.random() < DISTINCT_MOTIVES:
        return tuple(names[: size.suspects]), tuple(shuffled(rng, list(range(size.suspects))))
    drawn = [choose(rng, names) for _ in range(size.suspects)]
    held = [name for name in names if name in drawn]
    return tuple(held), tuple(map(held.index, drawn))


def _draw_times(rng: random.Random, count: int) -> tuple[str, ...]:
    """So many times around midnight, the same number of minutes apart."""
    step = choose(rng, MINUTES)
    first = MIDNIGHT - step * int(rng.random() * count)
    return tuple(clock(first + step * i) for i in range(count))


def clock(minutes: int) -> str:
    """Minutes after the midnight before as ``11:30 PM``."""
    hour, minute = divmod(minutes % MIDNIGHT, 60)
    return f"{(hour + 11) % 12 + 1:02d}:{minute:02d} {'PM' if hour >= 12 else 'AM'}"
