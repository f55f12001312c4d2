"""How little a completion repeats itself."""

from typing import Literal

from megatron_rl.data.answers.repetition import GRAM, repeat_ratio, repeats
from megatron_rl.data.answers.think_answer import parse
from megatron_rl.data.task import Sample
from megatron_rl.rewards.registry import Score


def repetition(sample: Sample, gram: int = GRAM, of: Literal["reasoning", "response"] = "response") -> Score:
    """1 - (N - distinct) / N over the character n-grams of ``gram``: 1 where nothing comes twice.

    ``repeats``: 1 where two neighbouring pieces of the text are alike by SimpleRL-Zoo's two rules.
    """
    if gram < 1:
        raise ValueError(f"repetition: gram is {gram}; it must be 1 or more")
    text, think, _ = parse(sample.prompt, sample.response)
    read = think if of == "reasoning" else text
    return {"score": 1 - repeat_ratio(read, gram), "repeats": float(repeats(read))}
