"""The numbers of an evaluated suite, each with its interval, as plain data."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from megatron_rl.evaluation.answering import Record, outcomes
from megatron_rl.evaluation.estimates.intervals import bootstrap
from megatron_rl.evaluation.estimates.sampling import avg_at_k, pass_at_k
from megatron_rl.evaluation.estimates.selection import select
from megatron_rl.evaluation.estimates.votes import majority
from megatron_rl.evaluation.suite import Outcome, Suite

FORMS = ("format", "boxed", "answered")  # what a report calls an answer that could be read; the first that is there
RIGHT = 0.5  # a score above it counts as right


def summarise(
    suite: Suite, records: Sequence[Record], samples: int, scores: Sequence[Sequence[float]] | None = None
) -> dict[str, Any]:
    """``accuracy`` (mean and 95 % interval over questions), the same ``by`` group, and further ``measures``.

    With several samples ``pass_at`` and ``majority_at`` too and, where ``scores`` of the records are given, what is
    ``selected`` by them. Then shares of completions that have no readable answer, were cut off, were not judged, and
    mean ``tokens``.
    """
    found = outcomes(suite, records, samples)
    each = [avg_at_k(outcome.scores) for outcome in found]
    by: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for outcome, score in zip(found, each, strict=True):
        for kind, name in outcome.item.groups.items():
            by[kind][name].append(score)
    measures = suite.measures(found)
    summary: dict[str, Any] = {
        "items": len(found),
        "completions": len(records),
        "samples": samples,
        "accuracy": _mean(each),
        "by": {kind: {name: _mean(own) for name, own in sorted(names.items())} for kind, names in by.items()},
        "measures": {
            name: _mean(values) if isinstance(values, list) else {"mean": values} for name, values in measures.items()
        },
    }
    if samples > 1:
        summary |= _of_several(found, samples)
        summary |= {"selected": _selected(found, scores)} if scores is not None else {}
    return summary | _of_completions(records)


def item_scores(suite: Suite, records: Sequence[Record], samples: int) -> list[float]:
    """One score an item, in their order: what two models are compared by."""
    return [avg_at_k(outcome.scores) for outcome in outcomes(suite, records, samples)]


def _of_several(found: Sequence[Outcome], samples: int) -> dict[str, Any]:
    powers = [2**power for power in range(samples.bit_length()) if 2**power < samples]
    passed = {
        str(k): _mean([pass_at_k(samples, sum(s > RIGHT for s in outcome.scores), k) for outcome in found])
        for k in (*powers, samples)
    }
    voted = [o.records[majority([r["extracted"] for r in o.records])]["correct"] for o in found]
    return {"pass_at": passed, "majority_at": {str(samples): _mean(voted)}}


def _selected(found: Sequence[Outcome], scores: Sequence[Sequence[float]]) -> dict[str, Any]:
    rules: dict[str, list[float]] = defaultdict(list)
    steps = not all(len(each) == 1 for each in scores)  # of one question all completions may have one step
    at = 0
    for outcome in found:
        own = scores[at : at + len(outcome.records)]
        at += len(own)
        answers, correct = zip(*((r["extracted"], r["correct"]) for r in outcome.records), strict=True)
        for rule, score in select(answers, correct, own, steps).items():
            rules[rule].append(score)
    return {rule: _mean(values) for rule, values in rules.items()}


def _of_completions(records: Sequence[Record]) -> dict[str, Any]:
    reports = [record["report"] for record in records if record["report"] is not None]
    formed = [next(report[form] for form in FORMS if form in report) for report in reports if set(FORMS) & set(report)]
    return {
        "unreadable": 1 - sum(formed) / len(formed) if formed else 0.0,
        "truncated": sum(record["finish_reason"] == "length" for record in records) / len(records),
        "unjudged": len(records) - len(reports),
        "tokens": sum(record["tokens"] for record in records) / len(records),
    }


def _mean(values: Sequence[float]) -> dict[str, float]:
    mean, low, high = bootstrap(values)
    return {"mean": mean, "low": low, "high": high, "n": len(values)}
