"""Which languages reasoning and answers are written in (DeepEnlighten, ``analysis/``)."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from megatron_rl.analysis.completions import Seen, spans

CLASSES = ("english", "chinese", "mixed", "")  # as ``languages.mix`` says; "": neither
NAMES = tuple(name or "neither" for name in CLASSES)


def mixing(completions: Sequence[Seen]) -> dict[str, dict[str, float]]:
    """For ``think`` and ``answer``: how many texts are of each class, how many there are, and the share mixed."""
    return {
        "think": counts(one.think_mix for one in completions),
        "answer": counts(one.answer_mix for one in completions),
    }


def counts(mixes: Iterable[str]) -> dict[str, float]:
    """``english``, ``chinese``, ``mixed``, ``neither``, ``total``; ``mixed_share`` is of the total."""
    found = Counter(mixes)
    total = found.total()
    named = {name or "neither": float(found[name]) for name in CLASSES}
    return named | {"total": float(total), "mixed_share": found["mixed"] / total if total else 0.0}


def over_time(completions: Sequence[Seen]) -> dict[str, Any]:
    """The shares of each class of the reasoning over the steps of training."""
    at, shares = [], []
    for step, some in spans(list(completions)):
        at.append(step)
        found = counts(one.think_mix for one in some)
        shares.append([found[name] / found["total"] for name in NAMES])
    return {"steps": at, "classes": list(NAMES), "shares": shares}
