"""Whether the reasoning keeps to one language (DeepSeek-R1, arXiv 2501.12948)."""

from typing import Literal

from megatron_rl.data.answers.languages import mix, share_of_letters
from megatron_rl.data.answers.think_answer import parse
from megatron_rl.data.task import Sample
from megatron_rl.rewards.registry import Score

# fmt: off
Language = Literal[
    "en", "de", "fr", "es", "it", "pt", "nl", "pl", "sv", "tr", "vi", "id", "ru", "uk", "bg",
    "zh", "ja", "ko", "ar", "fa", "he", "hi", "el", "th",
]
# fmt: on


def language(sample: Sample, language: Language = "en", of: Literal["reasoning", "response"] = "reasoning") -> Score:
    """The share of the letters that ``language`` is written with, 0 to 1; 0 without letters.

    ``mixed``: 1 where English and Chinese letters stand side by side.
    """
    text, think, _ = parse(sample.prompt, sample.response)
    read = think if of == "reasoning" else text
    return {"score": share_of_letters(read, language), "mixed": float(mix(read) == "mixed")}
