"""The rules of the game as a CP-SAT model (OR-Tools), and whether clues leave one story alone.

Every fact is a Boolean: who was where at what time, the motives, the murder. A set of clues is unique when no story but
the true one keeps to the rules and the clues, in any of its facts.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import product
from math import factorial, prod
from typing import Any as Anything

from megatron_rl.data.tasks.temporal_clue.facts import Alike, All, Any, Fact, Statement, evaluate
from megatron_rl.data.tasks.temporal_clue.story import Story, neighbours
from megatron_rl.errors import InputError

LISTED = 40_000  # stories of a size with one time, up to which all are listed once


def require_solver() -> None:
    """Raises InputError where OR-Tools is not installed."""
    try:
        import ortools.sat.python.cp_model  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"Puzzles are made with OR-Tools, which cannot be imported ({error}): pip install megatron-rl[puzzles]."
        ) from error


class Rules:
    """The CP-SAT model of a story's board and things, without its facts."""

    def __init__(self, story: Story) -> None:
        from ortools.sat.python import cp_model

        self.api = cp_model
        self.model = cp_model.CpModel()
        self.made: dict[Statement, Anything] = {}
        self.facts: dict[Fact, Anything] = {}
        suspects, rooms, times = len(story.suspects), len(story.rooms), len(story.times)
        for kind, count in (("murderer", suspects), ("weapon", len(story.weapons)), ("room", rooms), ("time", times)):
            self.model.add_exactly_one(self._new(Fact(kind, (i,))) for i in range(count))
        for piece, time in product(range(len(story.pieces)), range(times)):
            self.model.add_exactly_one(self._new(Fact("at", (piece, time, room))) for room in range(rooms))
        if story.motives:
            for suspect in range(suspects):
                self.model.add_exactly_one(self._new(Fact("motive", (suspect, m))) for m in range(len(story.motives)))
            for motive, count in enumerate(story.counts):
                self.model.add(sum(self.facts[Fact("motive", (s, motive))] for s in range(suspects)) == count)
        self._murder(story)
        self._moves(story)

    def _new(self, fact: Fact) -> Anything:
        self.facts[fact] = self.made[fact] = self.model.new_bool_var(f"{fact.kind}{fact.of}")
        return self.facts[fact]

    def _murder(self, story: Story) -> None:
        """At its time and in its room: murderer, Mr. Boddy and weapon, and no other suspect."""
        for time, room in product(range(len(story.times)), range(len(story.rooms))):
            then = [~self.facts[Fact("time", (time,))], ~self.facts[Fact("room", (room,))]]
            self.model.add_bool_or(*then, self.facts[Fact("at", (story.boddy, time, room))])
            for suspect in range(len(story.suspects)):
                murderer, there = (
                    self.facts[Fact("murderer", (suspect,))],
                    self.facts[Fact("at", (suspect, time, room))],
                )
                self.model.add_bool_or(*then, ~murderer, there)
                self.model.add_bool_or(*then, murderer, ~there)
            for weapon in range(len(story.weapons)):
                there = self.facts[Fact("at", (story.boddy + 1 + weapon, time, room))]
                self.model.add_bool_or(*then, ~self.facts[Fact("weapon", (weapon,))], there)

    def _moves(self, story: Story) -> None:
        """To a room beside; of a weapon, with a suspect."""
        near = neighbours(len(story.rooms), story.columns)
        for time, here in product(range(1, len(story.times)), range(len(story.rooms))):
            for piece in range(len(story.pieces)):
                was = ~self.facts[Fact("at", (piece, time - 1, here))]
                self.model.add_bool_or(was, *(self.facts[Fact("at", (piece, time, r))] for r in (here, *near[here])))
                for room in near[here] if piece > story.boddy else ():
                    carried = [self._literal(_went(s, time, here, room)) for s in range(len(story.suspects))]
                    self.model.add_bool_or(was, ~self.facts[Fact("at", (piece, time, room))], *carried)

    def _literal(self, statement: Statement) -> Anything:
        """A Boolean that is true where a statement holds."""
        if statement in self.made:
            return self.made[statement]
        found = self.model.new_bool_var("")
        if isinstance(statement, Alike):
            one, other = self._literal(statement.one), self._literal(statement.other)
            self.model.add_bool_xor(one, other, found if statement.negated is False else ~found)
        else:
            assert isinstance(statement, All | Any)
            parts = [self._literal(part) for part in statement.parts]
            if isinstance(statement, All):
                self.model.add_bool_and(*parts).only_enforce_if(found)
                self.model.add_bool_or(found, *(~part for part in parts))
            else:
                self.model.add_bool_or(~found, *parts)
                for part in parts:
                    self.model.add_implication(part, found)
        self.made[statement] = found
        return found

    def require(self, statement: Statement) -> None:
        """Keep only stories in which a statement holds."""
        if isinstance(statement, Fact):
            self.model.add_bool_or(self.facts[statement])
        elif isinstance(statement, All):
            for part in statement.parts:
                self.require(part)
        elif isinstance(statement, Any):
            self.model.add_bool_or(*map(self._literal, statement.parts))
        else:
            self.model.add_bool_or(self._literal(statement))

    def possible(self) -> bool:
        """Whether there is a story."""
        status = self._solver().solve(self.model)
        if status not in (self.api.OPTIMAL, self.api.FEASIBLE, self.api.INFEASIBLE):
            raise RuntimeError(f"CP-SAT ended with the status {status} on a puzzle")
        return status != self.api.INFEASIBLE

    def stories(self) -> list[set[Fact]]:
        """All stories, as the facts that hold in each."""
        found: list[set[Fact]] = []
        facts = self.facts

        class Collect(self.api.CpSolverSolutionCallback):  # type: ignore[name-defined, misc]
            def on_solution_callback(self) -> None:
                found.append({fact for fact, variable in facts.items() if self.boolean_value(variable)})

        solver = self._solver()
        solver.parameters.enumerate_all_solutions = True
        solver.solve(self.model, Collect())
        return found

    def _solver(self) -> Anything:
        solver = self.api.CpSolver()
        solver.parameters.num_workers = 1  # the workers of a run have one core each
        solver.parameters.random_seed = 0
        return solver


def _went(piece: int, time: int, start: int, end: int) -> Statement:
    return All((Fact("at", (piece, time - 1, start)), Fact("at", (piece, time, end))))


class Table:
    """All stories of a size with one time: unique is what leaves one of them."""

    def __init__(self, story: Story) -> None:
        listed = Rules(story).stories()
        self.every = (1 << len(listed)) - 1
        self.holds: dict[Fact, int] = {}
        for place, facts in enumerate(listed):
            for fact in facts:
                self.holds[fact] = self.holds.get(fact, 0) | 1 << place

    def leaves(self, statement: Statement) -> int:
        """The stories in which a statement holds, a bit for each."""
        return evaluate(statement, self.holds, self.every)


def story_count(story: Story) -> int:
    """How many stories there are of a size with one time."""
    suspects, weapons, rooms = len(story.suspects), len(story.weapons), len(story.rooms)
    motives = factorial(suspects) // prod(map(factorial, story.counts)) if story.motives else 1
    return suspects * rooms * (rooms - 1) ** (suspects - 1) * weapons * rooms ** (weapons - 1) * motives


@lru_cache(maxsize=64)
def _table(suspects: int, weapons: int, rooms: int, motive: tuple[int, ...]) -> Table:
    """The table of all stories with so many things and so many suspects of each motive; names do not matter to it."""
    motives = tuple(map(str, sorted(set(motive))))
    who, what, places = (tuple(map(str, range(count))) for count in (suspects, weapons, rooms))
    where = ((0,),) * (suspects + 1 + weapons)
    return Table(Story(who, what, places, rooms, ("",), motives, motive, where, 0, 0, 0, 0))


class Uniqueness:
    """Whether some of the clues leave the true story alone."""

    def __init__(self, story: Story, statements: Sequence[Statement]) -> None:
        self.table: Table | None = None
        if len(story.times) == 1 and story_count(story) <= LISTED:
            motive = tuple(sorted(story.motive))
            self.table = _table(len(story.suspects), len(story.weapons), len(story.rooms), motive)
            self.masks = list(map(self.table.leaves, statements))
        else:
            self.story, self.statements = story, statements

    def holds(self, clues: Iterable[int]) -> bool:
        """Of the clues with these numbers."""
        if self.table is None:
            return not _another(self.story, [self.statements[clue] for clue in clues])
        left = self.table.every
        for clue in clues:
            left &= self.masks[clue]
        return left.bit_count() == 1


def proved_unique(story: Story, statements: Sequence[Statement]) -> bool:
    """Whether CP-SAT finds the true story to keep to rules and statements, and no other."""
    rules = Rules(story)
    for statement in (*statements, *story.facts):
        rules.require(statement)
    return rules.possible() and not _another(story, statements)


def _another(story: Story, statements: Iterable[Statement]) -> bool:
    """Whether a story that is not the true one keeps to the statements. A model of its own for each such question: with
    one for all, whose clues are assumed, CP-SAT takes several times as long."""
    rules = Rules(story)
    rules.model.add_bool_or(*(~rules.facts[fact] for fact in story.facts))
    for statement in statements:
        rules.require(statement)
    return rules.possible()
