"""Whether the answer is right."""

import re
import string

from megatron_rl.rewards.format import ANSWER, completion, split
from megatron_rl.rewards.sample import Sample, Score

_LETTER = re.compile(r"<Answer>\s*([A-Z])[\s\S]*?</Answer>")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Lower case, ASCII punctuation removed, white space squeezed."""
    return " ".join(text.lower().translate(_NO_PUNCTUATION).split())


def letter(text: str) -> str:
    """The first capital letter that opens an ``<Answer>`` in a completion; "" when there is none."""
    start = text.find(ANSWER)
    match = _LETTER.search(text, start) if start >= 0 else None
    return match[1] if match else ""


def letter_matches(text: str, answer: str) -> float:
    """1 when the letter chosen in a completion is ``answer``, a letter written in any way (``(B)``, ``b.``), else 0."""
    chosen = letter(text)
    return float(bool(chosen) and chosen.lower() == normalise(answer))


def multiple_choice(sample: Sample) -> Score:
    """1 when the letter in ``<Answer>`` is ``sample.answer``, else 0; the form of the rest does not matter."""
    return {"score": letter_matches(completion(sample), sample.answer)}


def answer_in_format(sample: Sample) -> Score:
    """1 when the completion has the form and its normalised answer is ``sample.answer``'s, else 0."""
    parts = split(completion(sample))
    return {"score": float(parts is not None and normalise(parts.answer) == normalise(sample.answer))}
