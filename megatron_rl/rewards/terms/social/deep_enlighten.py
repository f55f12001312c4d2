"""The reward of DeepEnlighten (github.com/DolbyUUU/DeepEnlighten): the completion's form, and one of three options."""

from typing import Literal

from megatron_rl.data.answers.reasoned_choice import NOTHING, after_header, own_text, read, right_letter
from megatron_rl.data.task import Sample
from megatron_rl.rewards.registry import Score


def deep_enlighten(
    sample: Sample,
    mode: Literal["faithful", "fixed"] = "faithful",
    format_correct: float = 2.0,
    format_incorrect: float = -2.0,
    answer_correct: float = 2.0,
    answer_incorrect: float = -2.0,
    answer_invalid: float = -3.0,
) -> Score:
    """The sum of ``format`` and ``answer``; the defaults are published, the authors' code has ±1 for format.

    ``faithful`` looks, as upstream does, behind the first header of an assistant in prompt and response together:
    without one nothing is valid, and "Assistant:" in the reasoning counts as one. ``fixed`` looks at the response
    alone. ``sample.answer`` is a letter, a label of Social IQa (1, 2, 3) or an object that has one as ``label``. The
    token that ended a completion is not in its text, so it stands there for none or for the one that is allowed.
    """
    right = right_letter(sample.answer)
    if mode == "faithful":
        text = after_header(sample.prompt + sample.response)
    else:
        text = own_text(sample.prompt, sample.response)
    choice = NOTHING if text is None else read(text)
    form = format_correct if choice.formed else format_incorrect
    answer = answer_invalid if not choice.letter else answer_correct if choice.letter == right else answer_incorrect
    return {"score": form + answer, "format": form, "answer": answer}
