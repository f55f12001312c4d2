"""Rows of a data file or of a data set on the Hugging Face hub, through the ``datasets`` library."""

import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from megatron_rl.errors import InputError

FORMATS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Table:
    """Rows with the names of their columns, in the file's order."""

    name: str  # the file or hub id, for messages
    columns: list[str]
    rows: list[dict[str, Any]]

    def find(self, wanted: str, renamed: dict[str, str]) -> str | None:
        """The file's column for ``wanted``: the one it was renamed to, its exact name, or the only one that is
        spelt with the same ASCII letters and digits (OPTION-A is option_a). None when there is none.

        Raises InputError when the renamed column is missing or several are spelt alike.
        """
        if wanted in renamed:
            return self.require(renamed[wanted], {}, f" (data.columns.{wanted})")
        if wanted in self.columns:
            return wanted
        alike = [c for c in self.columns if _letters(c) == _letters(wanted) != ""]
        if len(alike) > 1:
            raise InputError(
                f"{self.name}: the columns {', '.join(map(repr, alike))} could all be {wanted!r}. Say which with "
                f"data.columns.{wanted}=NAME."
            )
        return alike[0] if alike else None

    def require(self, wanted: str, renamed: dict[str, str], origin: str = "") -> str:
        """As ``find``, but a missing column is an InputError that lists those there."""
        column = self.find(wanted, renamed)
        if column is None:
            near = get_close_matches(_letters(wanted), map(_letters, self.columns), n=1)
            nearest = [c for c in self.columns if near and _letters(c) == near[0]]
            raise InputError(
                f"{self.name} has no column {wanted!r}{origin}; it has {', '.join(map(repr, self.columns))}. "
                + (f"The nearest is {nearest[0]!r}. " if nearest else "")
                + "Set data.columns.OUR_NAME=ITS_NAME for columns with other names."
            )
        return column


def is_local(path: str) -> bool:
    """A path with a known ending, or one that exists or could not be a hub id, is a local file."""
    return Path(path).suffix in FORMATS or Path(path).exists() or not HUB_ID.fullmatch(path)


def read_table(path: str, split: str, limit: int = 0) -> Table:
    """All rows, or the first ``limit``. ``split`` counts for hub ids only.

    Raises InputError naming the path when it is missing, empty, unreadable or cannot be fetched.
    """
    table = _read_file(Path(path), limit) if is_local(path) else _read_hub(path, split, limit)
    if not table.rows:
        raise InputError(f"{path} has no rows. Give a file with at least one question.")
    return table


def _read_file(path: Path, limit: int) -> Table:
    if not path.is_file():
        raise InputError(f"The data file {path} does not exist. Set data.path (data.eval_path) to a file or a hub id.")
    if path.suffix not in FORMATS:
        raise InputError(f"The data file {path} ends in {path.suffix!r}; it must end in {', '.join(FORMATS)}.")
    if not path.stat().st_size:
        raise InputError(f"The data file {path} is empty (0 bytes).")
    import datasets

    # Every csv field is text: an answer "None" is not a missing value.
    options: dict[str, Any] = {"keep_default_na": False} if path.suffix == ".csv" else {}
    try:  # streaming leaves no copy in the cache
        stream = datasets.load_dataset(
            FORMATS[path.suffix], data_files=str(path.resolve()), split="train", streaming=True, **options
        )
        rows = list(stream.take(limit) if limit else stream)
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        raise InputError(
            f"The data file {path} cannot be read as {path.suffix[1:]}: {_first_line(error)}. Check that it is "
            "complete and that its content fits its ending."
        ) from error
    return Table(str(path), list(rows[0]) if rows else [], rows)


def _read_hub(path: str, split: str, limit: int) -> Table:
    import datasets

    try:
        data = datasets.load_dataset(path, split=f"{split}[:{limit}]" if limit else split)
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        raise InputError(
            f"The data set {path} (split {split!r}) cannot be loaded from the Hugging Face hub: {_first_line(error)}. "
            "Check its name, its split and your access to it; without a network, give a local file "
            f"({' '.join(FORMATS)}) instead."
        ) from error
    return Table(path, list(data.column_names), list(data))


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
