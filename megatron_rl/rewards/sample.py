"""What a reward function sees."""

from dataclasses import dataclass, field
from typing import Any

from megatron_rl.data.task import Example


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


Score = dict[str, float]
"""Named components; the key ``score`` is the term's value and is required."""


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
