"""The process group of a swap by messages, and who is who in it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from megatron_rl.errors import InputError


@dataclass
class Endpoints:
    """Who is who in the process group, and what both sides must set alike."""

    sources: Sequence[int]  # rank of each of the plan's source ranks; -1: it is not there, for it sends nothing
    destinations: Sequence[int]  # rank of each of the plan's destination ranks
    buffer: int = 64 << 20  # bytes of staging memory on any rank
    timeout: float = 300.0  # seconds that a swap may take
    group: Any = None  # a process group that all of them are in, numbered as there; None: the default group
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))  # of the slots: a GPU for NCCL
    own: bool = False  # whether the group is for these ends alone, and ends with them

    def __post_init__(self) -> None:
        both = set(self.sources) & set(self.destinations)
        if both:
            raise InputError(
                f"Rank {min(both)} is a source and a destination of one swap: point-to-point messages connect "
                "different processes. Use the in-process transport there."
            )

    def leave(self) -> None:
        """Break a group of our own: whoever waits for us in it learns it at once.

        Gloo closes connections when nobody holds the group any more, its messages under way included.
        """
        if self.own and self.group is not None:
            self.group.abort()
            self.own, self.group = False, None


def send(group: Any, message: torch.Tensor, rank: int) -> Any:
    """Begin to send; ``rank`` is the group's. torch's isend knows no groups but those that it has made itself."""
    return _real(group).send([message], rank, 0)


def receive(group: Any, message: torch.Tensor, rank: int) -> Any:
    """Begin to receive."""
    return _real(group).recv([message], rank, 0)


def _real(group: Any) -> Any:
    chosen = group or dist.group.WORLD
    if chosen is None:
        raise RuntimeError("torch.distributed has no default group")
    return chosen
