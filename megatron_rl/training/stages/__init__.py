"""The stages of a run, in their order: each makes its batches on rank 0 and learns from them on all ranks."""

from typing import TYPE_CHECKING, Protocol

from megatron_rl.config import Config
from megatron_rl.swap.trainer import Swap
from megatron_rl.tracking.run_folder import RunFolder
from megatron_rl.training.batch import Batch, Step
from megatron_rl.training.models import Models
from megatron_rl.training.progress import Progress

if TYPE_CHECKING:
    from megatron_rl.training.controller import Controller


class Stage(Protocol):
    """What the loop knows of a stage. All but ``batch`` are collective."""

    name: str
    steps: int
    samples: bool  # its batches are drawn from the present policy, so every step ends with a swap

    def enter(self, models: Models, at: Progress) -> None:
        """Get optimiser and frozen models ready; the policy's weights are those that the stage before left."""

    def batch(self, controller: "Controller", at: Progress) -> Step:
        """The batch of the step after ``at``; rank 0 only."""

    def learn(self, models: Models, batch: Batch, step: int) -> tuple[dict[str, float], list[float]]:
        """All optimiser steps of a step: their metrics, and what each sample got credit for ([] where none does)."""

    def leave(self, models: Models, swap: Swap, at: Progress) -> None:
        """What the stage leaves for those after it, and for the user."""


def stages(config: Config, run: RunFolder, at: Progress) -> list[Stage]:
    """The stages from the one that ``at`` stands in."""
    from megatron_rl.training.stages.rl import RL
    from megatron_rl.training.stages.sft import SFT

    every: list[Stage] = [SFT(config, run), RL(config, run)]
    names = [stage.name for stage in every]
    return every[names.index(at.stage) :]


def first_stage(config: Config) -> str:
    """Where a run begins."""
    return "sft" if config.sft.steps else "rl"
