"""Whether a run trains on what it is evaluated on: what ``check`` warns of."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from megatron_rl.data.files import Table, is_local, read_table
from megatron_rl.errors import InputError
from megatron_rl.evaluation.config import SuiteConfig
from megatron_rl.evaluation.estimates.contamination import N, overlaps
from megatron_rl.evaluation.suite import Card, Suite

HALF = 0.5  # of a question's n-grams: it has been seen
LARGEST = 16 << 20  # bytes of a file that is looked through, which takes seconds


def row_texts(table: Table) -> Iterator[str]:
    """All texts of each row, those inside of lists and objects too."""
    for cells in zip(*(table.column(column) for column in table.columns), strict=True):
        yield "\n".join(text for cell in cells for text in _inside(cell))


def warnings(suites: Mapping[str, tuple[Card, SuiteConfig, Suite | None]], trained: Mapping[str, str]) -> list[str]:
    """A sentence or two for each suite with questions that are trained on, and where nobody has looked.

    ``suites``: by name, with their questions where their data are here; ``trained``: options that name training data,
    and the file or hub id that each names. Files that cannot be read are left to those who train on them.
    """
    found = []
    for key, source in trained.items():
        left = {name: each for name, each in suites.items()}
        for name, (card, config, _) in suites.items():
            if _is_own(source, config.path or card.hub) and card.training.startswith("forbidden"):
                found.append(f"{key}={source} is the suite {name}'s own data, and training on it is {card.training}.")
                del left[name]
        asked = {name: (config.path, suite) for name, (_, config, suite) in left.items() if suite is not None}
        if asked and is_local(source) and Path(source).is_file():
            found += _shared(key, source, asked)
    return found


def _shared(key: str, source: str, suites: Mapping[str, tuple[str, Suite]]) -> list[str]:
    """``suites``: with where their data are."""
    how = {name: f"`megatron-rl data overlap {source} {name} --data {path}`" for name, (path, _) in suites.items()}
    if (size := Path(source).stat().st_size) > LARGEST:
        return [
            f"{key}={source} has {size / 1e6:,.0f} MB, so nobody has looked whether questions of "
            f"{', '.join(suites)} stand in it: {' and '.join(how.values())} would."
        ]
    try:
        rows = list(row_texts(read_table(source, "train")))
    except InputError:
        return []
    found = []
    for name, (_, suite) in suites.items():
        seen = sum(each.share >= HALF for each in overlaps([item.forms[0].prompt for item in suite.items], rows))
        if seen:
            found.append(
                f"{seen:,} of the {len(suite.items):,} questions of the suite {name} stand in {key}={source} (half of "
                f"their {N}-grams of words or more, or a shorter one whole): its numbers will tell what was learnt by "
                f"heart, too. {how[name]} names them."
            )
    return found


def _is_own(source: str, data: str) -> bool:
    """Whether a file is a suite's, or one of its folder's; or the same hub id."""
    if not data or is_local(source) != is_local(data):
        return False
    if not is_local(source):
        return source == data
    file, own = Path(source).resolve(), Path(data).resolve()
    return file == own or own in file.parents


def _inside(cell: Any) -> Iterator[str]:
    if isinstance(cell, str):
        yield cell
    elif isinstance(cell, dict):
        for value in cell.values():
            yield from _inside(value)
    elif isinstance(cell, list | tuple):
        for value in cell:
            yield from _inside(value)
