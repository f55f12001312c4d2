"""Where questions come from: the interface between a task and the loop."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from megatron_rl.rewards.sample import Sample

UNBOUNDED = 2**62  # length of the training sequence of a generator


@dataclass(frozen=True)
class Example:
    """One question. ``prompt`` is the exact text that is tokenised (special tokens included)."""

    id: str  # unique inside its task
    prompt: str
    answer: Any  # ground truth, handed to the rewards
    target: str = ""  # a completion to imitate (SFT); empty: none
    data_source: str = ""
    extra: dict[str, Any] = field(default_factory=dict)  # handed to the rewards


Report = Callable[["Sample"], dict[str, float]]
"""What a completion is worth to a person: named numbers, each 0..1, ``correct`` among them; their means are the run's
accuracy and its evaluations. It is called in the reward workers, under their deadline: a function of a module (or
``functools.partial`` of one), which they import by its name."""


class Task(Protocol):
    """A source of examples; both sequences are deterministic and cheap to index."""

    train: Sequence[Example]
    heldout: Sequence[Example]
    notes: dict[str, int]  # what is to be said of the rows: "training rows left out, …" -> how many; may be missing

    def fingerprint(self) -> str:
        """Hash of the data (xxh3-128, hex), written to the manifest."""

    @property
    def report(self) -> Report:
        """Judges one completion."""
