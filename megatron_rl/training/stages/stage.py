"""What a stage is, and what rank 0 lets it draw on."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from megatron_rl.data.prompts import Prompts
from megatron_rl.swap.trainer import Alone, Swap
from megatron_rl.training.batch import Batch, Drawn, Step
from megatron_rl.training.models import Models
from megatron_rl.training.progress import Progress


class Source(Protocol):
    """Where batches come from (``training.controller.Controller``)."""

    @property
    def prompts(self) -> Mapping[str, Prompts[Any]]:
        """A cursor for each stage, by its name: over the task's examples, or over rows of the stage's own."""

    @property
    def encode(self) -> Callable[[str], tuple[int, ...]]:
        """Text to token ids."""

    def take(self, at: Progress) -> Drawn:
        """The scored rollouts for the step after ``at``."""


class Stage(Protocol):
    """What the loop knows of a stage. All but ``batch`` are collective."""

    name: str
    steps: int
    samples: bool  # its batches are drawn from the present policy, so every step ends with a swap

    def enter(self, models: Models, at: Progress) -> None:
        """Get optimiser and frozen models ready; the policy's weights are those that the stage before left."""

    def batch(self, source: Source, at: Progress) -> Step:
        """The batch of the step after ``at``; rank 0 only."""

    def learn(self, models: Models, batch: Batch, step: int) -> tuple[dict[str, float], list[float]]:
        """All optimiser steps of a step: their metrics, and what each sample got credit for ([] where none does)."""

    def leave(self, models: Models, swap: Swap | Alone, at: Progress) -> None:
        """What the stage leaves for those after it, and for the user."""
