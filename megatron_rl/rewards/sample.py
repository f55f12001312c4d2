"""What a reward function sees."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Sample:
    """One completion to be scored, as text."""

    prompt: str  # decoded with special tokens
    response: str  # decoded with special tokens, end token included
    answer: Any  # the ground truth, in the task's own form
    data_source: str = ""
    extra: dict[str, Any] = field(default_factory=dict)  # story, question, options, … of the example
    step: int = 0  # RL step, for curricula
    finish_reason: str = "stop"  # "stop" | "length"


Score = dict[str, float]
"""Named components; the key ``score`` is the term's value and is required."""
