"""A puzzle: a story, the fewest clues that settle it, and questions that they answer."""

import random
from collections.abc import Collection
from dataclasses import dataclass
from string import ascii_uppercase

from megatron_rl.data.tasks.temporal_clue.clues import FAMILIES, Clue, all_clues
from megatron_rl.data.tasks.temporal_clue.solver import Uniqueness
from megatron_rl.data.tasks.temporal_clue.story import Names, Size, Story, draw_story, shuffled


@dataclass(frozen=True)
class Question:
    """One question; ``kind`` is what its answer is: SUSPECT, WEAPON, ROOM, TIME, MOTIVE."""

    text: str
    kind: str
    answer: str


@dataclass(frozen=True)
class Puzzle:
    """Without any of its clues there is a second story; with all of them there is one in every detail."""

    story: Story
    clues: tuple[Clue, ...]
    questions: tuple[Question, ...]  # about the murder
    bonus: tuple[Question, ...]

    @property
    def lettered(self) -> dict[str, Question]:
        """All questions by letter, from A."""
        return dict(zip(ascii_uppercase, (*self.questions, *self.bonus), strict=False))

    @property
    def solution(self) -> dict[str, str]:
        """Letter -> answer."""
        return {letter: question.answer for letter, question in self.lettered.items()}


def make_puzzle(
    rng: random.Random,
    size: Size,
    names: Names,
    most_questions: int,
    families: Collection[str] = (),
    heldout: bool = False,
) -> Puzzle:
    """A puzzle of a size that is solvable, with bonus questions up to so many questions in all.

    ``families``: as in ``all_clues``; ``heldout``: as in ``draw_story``.
    """
    story = draw_story(rng, size, names, heldout)
    offered = all_clues(story, rng, families)
    order = sorted(((FAMILIES[clue.family] + rng.random(), i) for i, clue in enumerate(offered)))
    clues = [offered[i] for _, i in order]
    kept = needed(Uniqueness(story, [clue.says for clue in clues]), len(clues))
    chosen = shuffled(rng, [clues[i] for i in kept])
    told = {clue.text for clue in chosen}
    questions = _questions(story, told)
    asked = shuffled(rng, [clue for clue in clues if clue.question])[: max(0, most_questions - len(questions))]
    bonus = [Question(c.question, _kind(story, c.answer), c.answer) for c in asked if c.text not in told]
    return Puzzle(story, tuple(chosen), tuple(questions), tuple(bonus))


def needed(unique: Uniqueness, count: int) -> list[int]:
    """The clues that stay when each is given up, from the first on, unless another story is left without it.

    None of those that stay can be left out. A stretch of clues that can be given up at once is: as fewer clues never
    leave fewer stories, that gives what one at a time would.
    """
    kept: list[int] = []

    def shrink(first: int, last: int) -> None:
        """Settle clues first … last - 1; those before them are settled, those behind are all there."""
        if unique.holds([*kept, *range(last, count)]):
            return
        if last - first == 1:
            kept.append(first)
            return
        middle = (first + last) // 2
        shrink(first, middle)
        shrink(middle, last)

    shrink(0, count)
    return kept


def _questions(story: Story, told: set[str]) -> list[Question]:
    """About the murder, those left out whose answer is a clue."""
    weapon, room, time = story.weapons[story.weapon], story.rooms[story.room], story.times[story.time]
    found = [Question("Who murdered Mr. Boddy?", "SUSPECT", story.suspects[story.murderer])]
    if f"Mr. Boddy was killed with the {weapon}" not in told:
        found.append(Question("What weapon did the murderer use?", "WEAPON", weapon))
    if not any(text.startswith("Mr. Boddy was murdered ") and text.endswith(f" the {room}") for text in told):
        found.append(Question("Where was the murder committed?", "ROOM", room))
    if len(story.times) > 1 and f"Mr. Boddy was murdered at {time}" not in told:
        found.append(Question("When did the murder occur?", "TIME", time))
    if story.motives:
        why = story.motives[story.motive[story.murderer]]
        found.append(Question("Why did the murderer do it?", "MOTIVE", why))
    return found


def _kind(story: Story, answer: str) -> str:
    if answer in story.rooms:
        return "ROOM"
    return "SUSPECT" if answer in story.suspects else "MOTIVE"
