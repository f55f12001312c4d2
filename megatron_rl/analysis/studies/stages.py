"""Which stages of social information processing the reasoning goes through, and whether the answer follows."""

from collections.abc import Sequence
from typing import Any

from megatron_rl.analysis.completions import Seen, spans
from megatron_rl.rewards.terms.social.sip import NAMES, STAGES


def coverage(completions: Sequence[Seen]) -> dict[str, float]:
    """Shares of completions: with each stage by its name, with ``all`` four, ``order`` of neighbouring ones, and
    ``faithful`` of those of whom it can be told."""
    if not completions:
        return {}
    count = len(completions)
    found = {name: sum(one.stages[i] for one in completions) / count for i, name in enumerate(NAMES)}
    found["all"] = sum(sum(one.stages) == STAGES for one in completions) / count
    found["order"] = sum(one.order for one in completions) / count
    told = [one.faithful for one in completions if one.faithful is not None]
    if told:
        found["faithful"] = sum(told) / len(told)
    return found


def over_time(completions: Sequence[Seen]) -> dict[str, Any]:
    """``coverage`` over the steps of training: ``steps`` and a list of each share; missing ones are NaN."""
    at = [(step, coverage(some)) for step, some in spans(list(completions))]
    names = list(dict.fromkeys(name for _, found in at for name in found))
    return {"steps": [step for step, _ in at]} | {
        name: [found.get(name, float("nan")) for _, found in at] for name in names
    }
