"""How a group of rollouts comes about: one file each.

A strategy asks for completions as often as it likes, and for scores of what it has made of them; groups of a step run
side by side, and what they ask for at one time is answered together.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from megatron_rl.data.task import Example
from megatron_rl.rollout.protocol import Completion
from megatron_rl.rollout.rollout import Rollout

Complete = Callable[[Sequence[int], int], Awaitable[list[Completion]]]
"""(tokens so far, how many) -> so many completions of them; every one of a group is drawn with a seed of its own."""
Score = Callable[[Sequence[Rollout]], Awaitable[None]]
"""Fills ``scored`` of each."""


class Strategy(Protocol):
    """Makes groups; ``group`` may run for several examples at once."""

    async def group(self, example: Example, size: int, complete: Complete, score: Score) -> list[Rollout]:
        """``size`` scored rollouts of one example."""

    def observe(self, groups: Sequence[Sequence[Rollout]]) -> None:
        """All groups of a round of generation are done, in the order of their examples."""

    def state(self) -> dict[str, Any]:
        """What was observed and counts for groups to come, as JSON."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on with a ``state``."""
