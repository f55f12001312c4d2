"""Many reports in one."""

from collections.abc import Iterable, Mapping
from math import fsum


def summarise(reports: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The mean of every key over the reports that have it; keys in the order in which they first appear."""
    values: dict[str, list[float]] = {}
    for report in reports:
        for key, value in report.items():
            values.setdefault(key, []).append(value)
    return {key: fsum(numbers) / len(numbers) for key, numbers in values.items()}
