"""Whether a completion has the form ``<think>reasoning</think> … <Answer>answer</Answer>``."""

from megatron_rl.data.answers.think_answer import parse
from megatron_rl.data.task import Sample
from megatron_rl.rewards.registry import Score


def format(sample: Sample) -> Score:
    """1 when the completion has the form, else 0."""
    return {"score": float(parse(sample.prompt, sample.response).parts is not None)}
