"""Two models on the same questions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_rl.errors import InputError
from megatron_rl.evaluation.answering import Record
from megatron_rl.evaluation.estimates.intervals import compare
from megatron_rl.evaluation.records import read_records
from megatron_rl.evaluation.suite import Suite
from megatron_rl.evaluation.summary import item_scores


def against(suite: Suite, records: Sequence[Record], samples: int, path: Path) -> dict[str, Any]:
    """What the records of another evaluation say beside these: ``difference`` (these - the others, with its interval),
    ``only_here`` and ``only_there`` (questions that one alone has right) and ``p_value`` (exact McNemar).

    Raises InputError where the others are of other questions, or not complete.
    """
    identity, others = read_records(path)
    if identity.get("suite") != suite.name or identity.get("data") != suite.questions():
        raise InputError(
            f"{path} is of other questions ({identity.get('suite')}), or of other options of {suite.name}: compare "
            "evaluations of the same suite, language and limit."
        )
    drawn = _samples(identity)
    forms = sum(len(item.forms) for item in suite.items)
    if len(others) != forms * drawn:
        raise InputError(f"{path} is not complete ({len(others)} of {forms * drawn} completions): let it end first.")
    found = compare(item_scores(suite, others, drawn), item_scores(suite, records, samples))
    return {
        "against": str(path),
        "difference": dict(zip(("mean", "low", "high"), found.difference, strict=True)),
        "only_here": found.only_second,
        "only_there": found.only_first,
        "p_value": found.p_value,
    }


def _samples(identity: Mapping[str, Any]) -> int:
    return int(identity["sampling"]["samples"])
