"""Where questions come from: the interface between a task and the loop."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, overload

UNBOUNDED = 2**62  # length of the training sequence of a generator
HELD_OUT, TRAINED_ON = "held-out rows", "that are trained on too"  # what a task counts of its rows
SHORT = 24  # characters of a text that is a name rather than a text


class Compared(NamedTuple):
    """Two completions of a question, of which one is to be preferred."""

    prefix: str  # the beginning of both; empty: none
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Example:
    """One question. ``prompt`` is the exact text that is tokenised (special tokens included)."""

    id: str  # unique inside its task
    prompt: str
    answer: Any  # ground truth, handed to the rewards
    target: str = ""  # a completion to imitate (SFT); empty: none
    data_source: str = ""
    extra: dict[str, Any] = field(default_factory=dict)  # handed to the rewards
    compared: Compared | None = None  # what to prefer (DPO); None: nothing is known

    @property
    def facts(self) -> dict[str, Any]:
        """What of ``extra`` can be kept beside every completion: numbers and short texts (a kind, a difficulty)."""
        return {
            key: value
            for key, value in self.extra.items()
            if isinstance(value, int | float) or (isinstance(value, str) and len(value) <= SHORT)
        }


class Examples(Sequence[Example]):
    """A sequence that makes its examples when they are asked for: ``example(index)``, of an index from 0."""

    @abstractmethod
    def example(self, index: int) -> Example:
        """The example at an index, 0 <= index < len(self)."""

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        count = len(self)
        if isinstance(index, slice):
            return [self.example(i) for i in range(*index.indices(count))]
        if not -count <= index < count:
            raise IndexError(f"example {index} of {count}")
        return self.example(index % count)


@dataclass(frozen=True)
class Sample:
    """One completion to be scored, as text."""

    prompt: str  # the exact text that was tokenised, special tokens included
    response: str  # decoded, special tokens included, but without the stop token that ended it: see finish_reason
    answer: Any  # the ground truth, in the task's own form
    data_source: str = ""
    extra: dict[str, Any] = field(default_factory=dict)  # story, question, options, … of the example
    step: int = 0  # RL step, counted from 0, for curricula
    finish_reason: str = "stop"  # "stop": it ended itself | "length": it was cut off at rollout.max_new_tokens


Report = Callable[[Sample], dict[str, float]]
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


def sample_of(example: Example, response: str, finish_reason: str = "stop", step: int = 0) -> Sample:
    """A completion of an example; ``response`` and ``finish_reason`` are those of ``Sample``."""
    return Sample(
        prompt=example.prompt,
        response=response,
        answer=example.answer,
        data_source=example.data_source,
        extra=example.extra,
        step=step,
        finish_reason=finish_reason,
    )
