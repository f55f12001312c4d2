"""Scores of an evaluation's completions: read from a file, or given by a reward model."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_rl.commands.waiting import working
from megatron_rl.errors import InputError
from megatron_rl.system.files import write_text

Scores = list[list[float]]
"""Of every completion, in the records' order: one, or one of each of its steps."""
Completion = tuple[str, int, int]  # item, form, sample
STEP_END = "\n\n"  # between two steps of a completion
_AT_ONCE = 16  # texts


def read_scores(path: Path) -> dict[Completion, list[float]]:
    """From JSON lines with ``item``, ``form`` (0 where it is missing), ``sample`` and ``scores`` (a number or a list).

    Raises InputError for a file that cannot be read.
    """
    found: dict[Completion, list[float]] = {}
    number = 0
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            number += 1
            row = json.loads(line)
            given = row["scores"] if isinstance(row["scores"], list) else [row["scores"]]
            found[str(row["item"]), row.get("form", 0), row["sample"]] = [float(score) for score in given]
    except OSError as error:
        raise InputError(f"--scores {path} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f'--scores {path}, line {number}: it must be {{"item": …, "sample": 0, "scores": [0.5]}} ({error!r}).'
        ) from error
    return found


def scores_of(records: Sequence[dict[str, Any]], found: Mapping[Completion, list[float]], path: Path) -> Scores:
    """Each completion's, as ``path`` has them. Raises InputError for one that it lacks."""
    keys = [(record["item"], record["form"], record["sample"]) for record in records]
    if (lacking := next((key for key in keys if key not in found), None)) is not None:
        raise InputError(f"--scores {path} has none for item {lacking[0]}, form {lacking[1]}, sample {lacking[2]}.")
    return [found[key] for key in keys]


def score(folder: Path, records: Sequence[dict[str, Any]], by_step: bool, threads: int, out: Path) -> Scores:
    """Those that a reward model's folder gives, of whole completions or after each step; written to ``out``, too."""
    from megatron_rl.rewards.serving.scorer import Scorer  # torch

    scorer = Scorer(folder, threads)
    texts = [_pieces(record["completion"]) if by_step else [record["completion"]] for record in records]
    flat = [(record["prompt"], text) for record, own in zip(records, texts, strict=True) for text in own]
    given: list[float] = []
    with working(f"scoring by {folder}", "texts", len(flat)) as progress:
        for first in range(0, len(flat), _AT_ONCE):
            try:
                given += scorer(flat[first : first + _AT_ONCE])
            except ValueError as error:
                raise InputError(f"{folder} cannot score the completions: {error}.") from error
            progress(len(flat[first : first + _AT_ONCE]))
    scores, at = [], 0
    for own in texts:
        scores.append(given[at : at + len(own)])
        at += len(own)
    rows = [
        {"item": r["item"], "form": r["form"], "sample": r["sample"], "scores": each}
        for r, each in zip(records, scores, strict=True)
    ]
    write_text(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return scores


def _pieces(completion: str) -> list[str]:
    """A completion up to the end of each of its steps."""
    steps = [step for step in completion.split(STEP_END) if step.strip()]
    return [STEP_END.join(steps[:count]) for count in range(1, len(steps) + 1)]
