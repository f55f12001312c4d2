"""The share of a puzzle's questions that are answered right (Temporal Clue)."""

from megatron_rl.data.answers.lettered import shares
from megatron_rl.data.task import Sample
from megatron_rl.rewards.registry import Score


def temporal_clue(sample: Sample, strict_upstream: bool = False) -> Score:
    """Partial credit: right answers / questions, ``sample.answer`` being an object of letters with their answers.

    ``strict_upstream``: as OpenPipe's grader reads a completion, for which no answer with a digit in it, such as a
    time, can be right. ``answered``: the share of the questions that have an answer.
    """
    right, answered = shares(sample.response, sample.answer, strict_upstream)
    return {"score": right, "answered": answered}
