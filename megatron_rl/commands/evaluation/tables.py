"""What ``megatron-rl evaluate`` prints: results as a table, and the cards of suites."""

from collections.abc import Mapping, Sequence
from typing import Any

from megatron_rl.evaluation.registry import SUITES, card
from megatron_rl.evaluation.suite import Card
from megatron_rl.tracking.console import summary_table

COLUMNS = ("questions", "result", "95 % interval")


def table(name: str, known: Card, summary: Mapping[str, Any]) -> str:
    """The numbers of one suite."""
    samples = summary["samples"]
    rows = {"accuracy" if samples == 1 else f"avg@{samples}": _cells(summary["accuracy"])}
    rows |= {f"pass@{k}": _cells(value) for k, value in summary.get("pass_at", {}).items() if k != "1"}
    rows |= {f"majority@{k}": _cells(value) for k, value in summary.get("majority_at", {}).items()}
    rows |= {rule.replace("_", " "): _cells(value) for rule, value in summary.get("selected", {}).items()}
    rows |= {measure.replace("_", " "): _cells(value) for measure, value in summary["measures"].items()}
    for kind, names in summary["by"].items():
        if len(names) > 1:
            rows |= {f"  {kind.replace('_', ' ')} {each}": _cells(value) for each, value in names.items()}
    lines = [summary_table(rows, COLUMNS, f"{known.title} ({name})")]
    lines.append(
        f"  of {summary['completions']:,} completions {100 * summary['unreadable']:.1f} % without an answer that can "
        f"be read, {100 * summary['truncated']:.1f} % cut off, {summary['tokens']:.0f} tokens each"
        + (f"; {summary['unjudged']} not judged (wrong)" if summary["unjudged"] else "")
    )
    if known.training.startswith("forbidden"):
        lines.append(f"  training on it is {known.training}")
    return "\n".join(lines)


def cards(names: Sequence[str]) -> str:
    """The cards of suites, or of all. Raises InputError for an unknown one."""
    lines = []
    for name in names or SUITES:
        known = card(name)
        lines += [f"{name}: {known.title}", f"  source    {known.source}", f"  licence   {known.licence}"]
        lines += [f"  protocol  {known.protocol}", f"  training  {known.training}"]
        lines += [f"  data      {known.where}"] if known.where else ["  data      generated"]
        lines += [f"  options   {', '.join(known.takes)}"] if known.takes else []
    return "\n".join(lines)


def _cells(value: Mapping[str, float]) -> dict[str, str]:
    found = {"result": f"{100 * value['mean']:.1f} %"}
    if "low" in value:
        found |= {
            "questions": f"{value['n']:,}",
            "95 % interval": f"{100 * value['low']:.1f} – {100 * value['high']:.1f}",
        }
    return found
