"""Generated puzzles: true clues, one story each, no clue too many, the same for everybody."""

import random
from itertools import product

import pytest

from megatron_rl.data.config import PuzzlesConfig
from megatron_rl.data.tasks.temporal_clue.clues import FAMILIES, all_clues
from megatron_rl.data.tasks.temporal_clue.facts import Alike, All, Any, Fact, evaluate
from megatron_rl.data.tasks.temporal_clue.prompt import VOCABULARY
from megatron_rl.data.tasks.temporal_clue.puzzle import make_puzzle, needed
from megatron_rl.data.tasks.temporal_clue.sizes import problems
from megatron_rl.data.tasks.temporal_clue.solver import Rules, Table, Uniqueness, proved_unique, story_count
from megatron_rl.data.tasks.temporal_clue.story import NAMES, WORDS, Size, draw_story, is_heldout, neighbours
from megatron_rl.data.tasks.temporal_clue.task import draw_puzzle, row

SMALL = PuzzlesConfig()
LARGER = PuzzlesConfig(suspects="2-3", weapons="1-2", rooms="3-4", times="2", motives="0-3")


@pytest.mark.parametrize(("config", "count"), [(SMALL, 30), (LARGER, 4)])
def test_every_puzzle_has_one_solution_and_no_clue_too_many(config, count):
    """By CP-SAT, whatever the generator went by."""
    for index in range(count):
        puzzle = draw_puzzle(random.Random(index), config, heldout=False)
        says = [clue.says for clue in puzzle.clues]
        assert proved_unique(puzzle.story, says)
        for left in range(len(says)):
            assert not proved_unique(puzzle.story, says[:left] + says[left + 1 :])


def test_every_clue_is_true_and_known():
    families = set()
    for index in range(20):
        story = draw_story(random.Random(index), Size(3, 2, 4, 3, 3), NAMES)
        for clue in all_clues(story, random.Random(index)):
            assert evaluate(clue.says, story.facts, 1) == 1, clue.text
            families.add(clue.family)
    assert families == set(FAMILIES)


def test_stories_keep_to_the_rules():
    for index in range(100):
        story = draw_story(random.Random(index), Size(3, 2, 5, 4, 3), NAMES, heldout=index % 2 == 1)
        assert is_heldout(story) == (index % 2 == 1)
        near = neighbours(5, story.columns)
        for time in range(1, 4):
            was, now = ([rooms[t] for rooms in story.where] for t in (time - 1, time))
            for piece in range(story.boddy + 1):
                assert now[piece] == was[piece] or now[piece] in near[was[piece]]
            for piece in range(story.boddy + 1, len(story.pieces)):
                along = [s for s in range(3) if (was[s], now[s]) == (was[piece], now[piece])]
                assert now[piece] == was[piece] or along
        there = [i for i, rooms in enumerate(story.where) if rooms[story.time] == story.room]
        assert {story.murderer, story.boddy, story.boddy + 1 + story.weapon} <= set(there)
        assert [i for i in there if i < story.boddy] == [story.murderer]


@pytest.mark.parametrize("size", [Size(2, 2, 2, 1, 0), Size(2, 1, 3, 1, 2), Size(3, 2, 2, 1, 3)])
def test_the_table_holds_all_stories_of_a_size(size):
    """As many as can be counted by hand, and those that plain enumeration finds."""
    story = draw_story(random.Random(0), size, NAMES)
    listed = Rules(story).stories()
    assert len(listed) == story_count(story) == Table(story).every.bit_count()
    pieces, places = size.suspects + 1 + size.weapons, range(size.rooms)
    found = 0
    for where in product(places, repeat=pieces):
        alone = [s for s in range(size.suspects) if where[s] == where[size.suspects]]
        found += (len(alone) == 1) * sum(room == where[size.suspects] for room in where[size.suspects + 1 :])
    motives = len({tuple(sorted(f.of for f in facts if f.kind == "motive")) for facts in listed})
    assert len(listed) == found * motives


def test_table_and_solver_agree():
    for index in range(6):
        rng = random.Random(index)
        story = draw_story(rng, Size(2, 2, 3, 1, 2), NAMES)
        says = [clue.says for clue in all_clues(story, rng)][:12]
        unique = Uniqueness(story, says)
        assert unique.table is not None
        for count in (0, 3, 6, 12):
            assert unique.holds(range(count)) == proved_unique(story, says[:count])


def test_giving_up_stretches_is_giving_up_one_at_a_time():
    """Against the plain loop, with sets of alternatives that clues exclude."""

    class Excluding:
        def __init__(self, sets):
            self.sets = sets

        def holds(self, clues):
            return set().union(*(self.sets[i] for i in clues)) >= set(range(12))

    rng = random.Random(3)
    for _ in range(200):
        sets = [{i for i in range(12) if rng.random() < 0.3} for _ in range(20)] + [set(range(12))]
        unique, kept = Excluding(sets), list(range(21))
        for clue in range(21):
            without = [other for other in kept if other != clue]
            kept = without if unique.holds(without) else kept
        assert needed(unique, 21) == kept


def test_statements():
    a, b = Fact("time", (0,)), Fact("time", (1,))
    holds = {a: 0b0011, b: 0b0101}
    for statement, stories in (
        (All((a, b)), 0b0001),
        (Any((a, b)), 0b0111),
        (Any(()), 0),
        (Alike(a, b), 0b1001),
        (Alike(a, b, negated=True), 0b0110),
        (Fact("time", (2,)), 0),
    ):
        assert evaluate(statement, holds, 0b1111) == stories


def test_a_puzzle_depends_on_its_random_numbers_alone():
    """These are the same in every version of Python, and so are the puzzles."""
    first = row(draw_puzzle(random.Random("0/train/0"), SMALL, False), SMALL)
    assert first == row(draw_puzzle(random.Random("0/train/0"), SMALL, False), SMALL)
    assert first != row(draw_puzzle(random.Random("0/train/1"), SMALL, False), SMALL)
    assert (first["num_clues"], first["solution"]["A"]) == (3, "Miss Peach")


@pytest.mark.parametrize("style", ["full", "short"])
def test_texts(style):
    config = PuzzlesConfig(suspects="2-4", weapons="2", rooms="2-5", times="1-2", motives="0-4", style=style)
    for index in range(25):
        puzzle = draw_puzzle(random.Random(index), config, index % 2 == 1)
        found, story = row(puzzle, config), puzzle.story
        assert found["num_clues"] == len(puzzle.clues) > 0 and 1 <= len(found["solution"]) <= 8
        assert found["solution"]["A"] == story.suspects[story.murderer]
        assert ("TIMES" in found["prompt"] or "one of these times" in found["prompt"]) == (len(story.times) > 1)
        if style == "short":
            assert set(f"{found['prompt']} {found['target']}".split()) <= set(VOCABULARY)
        for letter, answer in found["solution"].items():
            assert f"{letter}. {answer}" in found["target"]
    assert len(VOCABULARY) == len(set(VOCABULARY))
    for long, short in zip(NAMES.suspects + NAMES.rooms, WORDS.suspects + WORDS.rooms, strict=True):
        assert short in long.split()


def test_the_board_of_eleven_rooms():
    puzzle = make_puzzle(random.Random(2), Size(1, 1, 11, 1, 0), NAMES, 4, ["whereabouts"])
    text = row(puzzle, PuzzlesConfig())["prompt"]
    columns, rows = (3, 4) if puzzle.story.columns == 3 else (4, 3)
    board = text.partition("The rooms lie like this:\n\n")[2].split("\n\n")[0].split("\n")
    assert board[0].split() == ["NN"] * columns and board[-1].split() == ["SS"] * columns and len(board) == rows + 2
    assert board[1].startswith("W 01|02|03") and board[-2].endswith("|- E")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"suspects": "2", "rooms": "1"}, "has no solution: 2 suspects in one room are never alone with Mr. Boddy"),
        ({"rooms": "3-2"}, "data.puzzles.rooms is '3-2'; it must be a range whose first number is the smaller one."),
        ({"times": "13"}, "data.puzzles.times is '13'; it must be between 1 and 12."),
        ({"weapons": "few"}, "data.puzzles.weapons is 'few'; it must be a number or a range, such as 2-4."),
        ({"clues": ["rumour"]}, "data.puzzles.clues names rumour; it can hold murder, whereabouts"),
        ({"names": 2}, "data.puzzles.names is 2; the puzzles need 3 or more, or 0 for all."),
    ],
)
def test_sizes_that_cannot_be(options, said):
    [found] = problems(PuzzlesConfig(**options))
    assert said in found


def test_sizes_that_can_be():
    assert problems(PuzzlesConfig()) == problems(PuzzlesConfig(suspects="1", rooms="1", motives="0", names=3)) == []
