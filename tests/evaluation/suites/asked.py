"""Suites made of small files in the form of the published ones, and what a model might answer."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from megatron_rl.data.prepared import Characters
from megatron_rl.data.task import Example, sample_of
from megatron_rl.evaluation.answering import Record
from megatron_rl.evaluation.registry import make_suite, suite_config
from megatron_rl.evaluation.suite import Suite


class Letters(Characters):
    """A character is a token; there is a vocabulary, and no chat template."""

    def encode(self, text: str, add_special_tokens: bool = False) -> list[str]:
        return list(text)

    def get_vocab(self) -> dict[str, int]:
        return {}


def suite_of(name: str, **options: Any) -> Suite:
    """Raises InputError for options that cannot be."""
    config, problems = suite_config(name, options)
    assert problems == []
    return make_suite(name, config, Letters())


def write_rows(path: Path, rows: Sequence[Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def records_of(suite: Suite, say: Callable[[Example], str | list[str]]) -> list[Record]:
    """The records of what ``say`` answers to each prompt: one completion, or several samples."""
    found = []
    for item in suite.items:
        for place, form in enumerate(item.forms):
            said = say(form)
            for number, text in enumerate([said] if isinstance(said, str) else said):
                sample = sample_of(form, text)
                report = suite.report(sample)
                found.append(
                    {
                        "item": item.id,
                        "form": place,
                        "sample": number,
                        "extracted": suite.extract(sample),
                        "correct": report["correct"],
                        "report": report,
                        "finish_reason": "stop",
                        "tokens": len(text),
                    }
                )
    return found
