"""A puzzle as text: in full, as the published ones are laid out, or in few words for a model with a word tokenizer.

Answers are lines ``A. SUSPECT``; in few words they stand on one line with `` ; `` between them.
"""

from collections.abc import Iterable
from string import ascii_uppercase

from megatron_rl.data.tasks.temporal_clue.clues import DIRECTIONS
from megatron_rl.data.tasks.temporal_clue.puzzle import Puzzle
from megatron_rl.data.tasks.temporal_clue.story import WORDS as NAMES
from megatron_rl.data.tasks.temporal_clue.story import Story, clock

BOS, EOS, PAD, END = "<bos>", "<eos>", "<pad>", "<sep>"
WORDS = (
    f"{PAD} {BOS} {EOS} {END} ; , ? | / - SUSPECTS WEAPONS ROOMS TIMES MOTIVES CLUES QUESTIONS Mr. Boddy The the A a "
    "was in at of from to and or but not both if only once together least same as room just were with by moved "
    "murdered killed murderer murder weapon suspect motivated is Who What Where When Why did do it use occur committed "
    f"motivates AM PM {' '.join(DIRECTIONS)}"
).split()


def full_text(puzzle: Puzzle) -> str:
    """The prompt of a puzzle."""
    story, several = puzzle.story, len(puzzle.story.times) > 1
    parts = [
        "Mr. Boddy had guests for dinner at his mansion on a winter night. In the early morning he was found dead in "
        f"one of its rooms. These are the suspects:\n\n{_listed(story.suspects)}",
        f"These weapons were found:\n\n{_listed(story.weapons)}",
        f"The murder was committed in one of these rooms:\n\n{_numbered(story)}",
        f"The rooms lie like this:\n\n{_board(story)}",
    ]
    if several:
        parts += [
            f"The murder was committed at one of these times:\n\n{_listed(story.times)}",
            "From one of these times to the next, each suspect and Mr. Boddy either stayed in the same room or moved "
            "to an adjacent one (north, south, east or west). Suspects could take weapons along from room to room.",
        ]
    if story.motives:
        distinct = max(story.counts) == 1
        has = "had a different one" if distinct else "had one"
        names = (
            story.motives if distinct else [_counted(n, c) for n, c in zip(story.motives, story.counts, strict=True)]
        )
        parts.append(f"Each suspect {has} of these motives for killing Mr. Boddy:\n\n{_listed(names)}")
    then = ' Where clues speak of Mr. Boddy, read "Mr. Boddy, dead or alive".' if several else ""
    parts += [
        "The murderer was alone in a room with Mr. Boddy and at least one weapon"
        f"{' at the time of the murder' if several else ''}.{then}",
        "These are the clues:\n\n" + "\n".join(f"- {clue.text}" for clue in puzzle.clues),
        f"Answer these questions:\n\n{_lettered(puzzle, 0, len(puzzle.questions))}",
    ]
    if puzzle.bonus:
        parts.append(f"And these bonus questions:\n\n{_lettered(puzzle, len(puzzle.questions), len(puzzle.lettered))}")
    lines = "\n".join(f"{letter}. {question.kind}" for letter, question in puzzle.lettered.items())
    return "\n\n".join([*parts, f"End with your answers in this form:\n\n{lines}"])


def short_text(puzzle: Puzzle) -> str:
    """The prompt in few words, all of ``VOCABULARY``, between ``BOS`` and ``END``."""
    story = puzzle.story
    rows = [" | ".join(row) for row in _rows(story.rooms, story.columns)]
    parts = [f"SUSPECTS {' , '.join(story.suspects)}", f"WEAPONS {' , '.join(story.weapons)}"]
    parts += [f"ROOMS {' / '.join(rows)}"]
    parts += [f"TIMES {' , '.join(story.times)}"] if len(story.times) > 1 else []
    counted = (f"{name} {count}" for name, count in zip(story.motives, story.counts, strict=True))
    parts += [f"MOTIVES {' , '.join(counted)}"] if story.motives else []
    parts += [f"CLUES {' ; '.join(_spaced(clue.text) for clue in puzzle.clues)}"]
    parts += [f"QUESTIONS {' ; '.join(f'{x}. {_spaced(q.text)}' for x, q in puzzle.lettered.items())}"]
    return f"{BOS} {' ; '.join(parts)} {END}"


def full_target(puzzle: Puzzle, answers: dict[str, str]) -> str:
    """A completion: where everybody and everything was, and answers by letter."""
    return "\n".join([*_whereabouts(puzzle.story, ", "), "", *(f"{x}. {answer}" for x, answer in answers.items())])


def short_target(puzzle: Puzzle, answers: dict[str, str]) -> str:
    """The same in few words, with ``EOS``."""
    lines = [*_whereabouts(puzzle.story, " , "), *(f"{letter}. {answer}" for letter, answer in answers.items())]
    return f"{' ; '.join(lines)} {EOS}"


def _whereabouts(story: Story, comma: str) -> list[str]:
    """A line for each time: Mr. Boddy, the weapons, and then the suspects, of whom one was alone with him."""
    order, found = [*range(story.boddy, len(story.pieces)), *range(story.boddy)], []
    for time, name in enumerate(story.times):
        rooms = [f"{story.pieces[i]} {story.rooms[story.where[i][time]]}" for i in order]
        found.append((f"{name} " if len(story.times) > 1 else "") + comma.join(rooms))
    return found


def _listed(names: Iterable[str]) -> str:
    return "\n".join(f"• {name}" for name in names)


def _counted(name: str, count: int) -> str:
    return f"{name} ({count} suspect{'' if count == 1 else 's'})"


def _numbers(story: Story) -> list[str]:
    width = len(str(len(story.rooms)))
    return [f"{number:0{width}d}" for number in range(1, len(story.rooms) + 1)]


def _numbered(story: Story) -> str:
    return "\n".join(f"{number}. {room}" for number, room in zip(_numbers(story), story.rooms, strict=True))


def _board(story: Story) -> str:
    """Rows of numbers between the four directions."""
    numbers = _numbers(story)
    ends = [" ".join([mark * len(numbers[0])] * story.columns) for mark in "NS"]
    rows = [f"W {'|'.join(row)} E" for row in _rows(numbers, story.columns)]
    return "\n".join([f"  {ends[0]}", *rows, f"  {ends[1]}"])


def _rows(cells: Iterable[str], columns: int) -> list[list[str]]:
    """Cells in rows; ``-`` where the last row has none."""
    found = list(cells)
    found += ["-"] * (-len(found) % columns)
    return [found[first : first + columns] for first in range(0, len(found), columns)]


def _lettered(puzzle: Puzzle, first: int, last: int) -> str:
    return "\n".join(f"{letter}. {question.text}" for letter, question in [*puzzle.lettered.items()][first:last])


def _spaced(text: str) -> str:
    return text.replace("?", " ?").replace(",", " ,")


def _vocabulary() -> tuple[str, ...]:
    names = (*NAMES.suspects, *NAMES.weapons, *NAMES.rooms, *NAMES.motives)
    times = [clock(minutes).split()[0] for minutes in range(0, 12 * 60, 15)]
    letters = [f"{letter}." for letter in ascii_uppercase]
    return tuple(dict.fromkeys([*WORDS, *names, *letters, *map(str, range(11)), *times]))


VOCABULARY = _vocabulary()
