"""Whether the answer is right."""

from megatron_rl.data.answers.think_answer import answer_matches, letter_matches, parse
from megatron_rl.data.task import Sample
from megatron_rl.rewards.registry import Score


def multiple_choice(sample: Sample) -> Score:
    """1 when the letter in ``<Answer>`` is ``sample.answer``, else 0; the form of the rest does not matter."""
    return {"score": float(letter_matches(parse(sample.prompt, sample.response).text, sample.answer))}


def answer_in_format(sample: Sample) -> Score:
    """1 when the completion has the form and its normalised answer is ``sample.answer``'s, else 0."""
    return {"score": float(answer_matches(parse(sample.prompt, sample.response).parts, sample.answer))}
