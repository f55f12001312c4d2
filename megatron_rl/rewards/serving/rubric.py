"""What a judge is asked: a text of the user's, in which names in braces stand for parts of a sample."""

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import xxhash

from megatron_rl.data.answers.think_answer import parse
from megatron_rl.data.task import Sample
from megatron_rl.errors import InputError

_PLACE = re.compile(r"\{([A-Za-z_]\w*)\}")  # {name}; other braces are text


@dataclass(frozen=True)
class Rubric:
    """The text of a file."""

    path: str
    text: str
    hash: str  # xxh3-128, hex

    def filled(self, sample: Sample) -> str:
        """The text about a sample. Raises InputError for a name that it has not."""
        values = _values(sample)

        def value(place: re.Match[str]) -> str:
            return _text(values[place[1]])

        if unknown := [name for name in dict.fromkeys(_PLACE.findall(self.text)) if name not in values]:
            raise InputError(
                f"The rubric {self.path} names {', '.join(f'{{{name}}}' for name in unknown)}, which a sample has not; "
                f"it has {', '.join(sorted(values))}."
            )
        return _PLACE.sub(value, self.text)  # once: what is filled in is not looked at


@lru_cache(maxsize=16)
def read_rubric(path: str) -> Rubric:
    """Raises InputError for a file that cannot be read, is empty or names nothing of a completion."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"rubric={path} cannot be read ({error}). Give a text file.") from error
    if not {"response", "reasoning"} & set(_PLACE.findall(text)):
        raise InputError(
            f"rubric={path} names neither {{response}} nor {{reasoning}}, so it asks the same of everything."
        )
    return Rubric(path, text, xxhash.xxh3_128_hexdigest(text.encode()))


def _values(sample: Sample) -> dict[str, Any]:
    """By name: the row's columns, and what every sample has."""
    text, reasoning, _ = parse(sample.prompt, sample.response)
    return sample.extra | {
        "prompt": sample.prompt,
        "response": text,
        "reasoning": reasoning,
        "answer": sample.answer,
        "data_source": sample.data_source,
    }


def _text(value: Any) -> str:
    """A list becomes lettered lines, as options are shown."""
    if isinstance(value, list | tuple):
        return "\n".join(f"{letter}. {item}" for letter, item in zip(ascii_uppercase, value, strict=False))
    return str(value)
