"""Words of second thoughts in the reasoning (DeepEnlighten's "aha" words, ``analysis/``)."""

from collections.abc import Sequence

from megatron_rl.analysis.completions import AHA, Seen


def words(completions: Sequence[Seen]) -> list[dict[str, float | str]]:
    """For each word that occurs: ``share`` of the completions with reasoning that have it, how many, and the mean
    character of the reasoning at which it stands ``first``; the commonest first."""
    valid = [one for one in completions if one.think]
    found: list[dict[str, float | str]] = []
    for word in AHA:
        firsts = [one.aha[word] for one in valid if word in one.aha]
        if firsts:
            found.append(
                {
                    "word": word,
                    "count": float(len(firsts)),
                    "share": len(firsts) / len(valid),
                    "first": sum(firsts) / len(firsts),
                }
            )
    return sorted(found, key=lambda row: -float(row["count"]))
