"""What can be so or not in a puzzle, and statements made of it: plain data with two meanings.

``evaluate`` says in which of many stories a statement holds; ``solver`` makes constraints of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Fact:
    """``at`` (piece, time, room), ``murderer`` (suspect), ``weapon``, ``room`` and ``time`` of the murder, or
    ``motive`` (suspect, motive): numbers of the puzzle's own things."""

    kind: str
    of: tuple[int, ...]


@dataclass(frozen=True)
class All:
    """Every part holds."""

    parts: tuple[Statement, ...]


@dataclass(frozen=True)
class Any:
    """One part holds, or several; of no parts, none does."""

    parts: tuple[Statement, ...]


@dataclass(frozen=True)
class Alike:
    """Both hold or neither does; ``negated``: one of them alone."""

    one: Statement
    other: Statement
    negated: bool = False


Statement = Fact | All | Any | Alike


def evaluate(statement: Statement, holds: Mapping[Fact, int], every: int) -> int:
    """The stories in which a statement holds, a bit for each. ``holds``: those of each fact, none where it is not
    there; ``every``: all stories."""
    if isinstance(statement, Fact):
        return holds.get(statement, 0)
    if isinstance(statement, Alike):
        differ = evaluate(statement.one, holds, every) ^ evaluate(statement.other, holds, every)
        return differ if statement.negated else every & ~differ
    if isinstance(statement, All):
        found = every
        for part in statement.parts:
            found &= evaluate(part, holds, every)
        return found
    found = 0
    for part in statement.parts:
        found |= evaluate(part, holds, every)
    return found
