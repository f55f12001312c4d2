"""Rows of a data file, or of a data set on the Hugging Face hub.

A local file is opened under the very name that was given, read as UTF-8 whatever the locale is, and no type is guessed:
a csv cell is the text of the file, a JSON or parquet cell has the type that it was written with.
"""

import csv
import json
import logging
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, BinaryIO

from megatron_rl.errors import InputError

FORMATS = (".parquet", ".jsonl", ".json", ".csv")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_ALIKE = 0.8  # of two names, one of which may be meant by the other
_SHOWN = 30  # columns in a message
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True)
class Table:
    """Rows as columns, in the file's order; a cell that a row does not have is None."""

    name: str  # the file or hub id, for messages
    cells: Mapping[str, Sequence[Any]]  # lists, or columns of pyarrow and datasets, turned into lists when asked for
    length: int  # rows
    key: str = "data"  # the group of options that it was named in, for messages

    @property
    def columns(self) -> list[str]:
        return list(self.cells)

    def column(self, name: str) -> list[Any]:
        """The cells of one column; ``outer.inner`` is what the objects in ``outer`` have under ``inner``."""
        if name not in self.cells:
            outer, _, inner = name.partition(".")
            return [_inside(cell, inner) for cell in self.column(outer)]
        cells = self.cells[name]
        return cells.to_pylist() if hasattr(cells, "to_pylist") else list(cells)

    def find(self, wanted: str, renamed: Mapping[str, str]) -> str | None:
        """The file's column for ``wanted``: the one it was renamed to, its exact name, or the only one that is
        spelt with the same ASCII letters and digits (OPTION-A is option_a). None when there is none.

        Raises InputError when the renamed column is missing or several are spelt alike.
        """
        if wanted in renamed:
            return self.require(renamed[wanted], {}, f" ({self.key}.columns.{wanted})")
        if wanted in self.cells or self._has_inside(wanted):
            return wanted
        alike = [c for c in self.columns if _letters(c) == _letters(wanted) != ""]
        if len(alike) > 1:
            raise InputError(
                f"{self.name}: the columns {', '.join(map(repr, alike))} could all be {wanted!r}. Say which with "
                f"{self.key}.columns.{wanted}=NAME."
            )
        return alike[0] if alike else None

    def require(self, wanted: str, renamed: Mapping[str, str], origin: str = "") -> str:
        """As ``find``, but a missing column is an InputError that lists those there."""
        column = self.find(wanted, renamed)
        if column is None:
            near = get_close_matches(_letters(wanted), map(_letters, self.columns), n=1)
            nearest = [c for c in self.columns if near and _letters(c) == near[0]]
            raise InputError(
                f"{self.name} has no column {wanted!r}{origin}; it has {_listing(self.columns)}. "
                + (f"The nearest is {nearest[0]!r}. " if nearest else "")
                + f"Set {self.key}.columns.OUR_NAME=ITS_NAME for columns with other names."
            )
        return column

    def _has_inside(self, name: str) -> bool:
        outer, dot, inner = name.partition(".")
        return (
            bool(dot) and outer in self.cells and any(_inside(cell, inner) is not None for cell in self.column(outer))
        )


def is_local(path: str) -> bool:
    """A path with a known ending, or one that exists or could not be a hub id, is a local file."""
    return Path(path).suffix.lower() in FORMATS or Path(path).exists() or not HUB_ID.fullmatch(path)


def file_problem(path: Path) -> str:
    """Why a local path is no data file, as a sentence; "" when it has a known ending and is not empty."""
    if path.is_dir():
        inside = sorted(file for file in path.iterdir() if file.suffix.lower() in FORMATS)
        such = f", such as {inside[0]}" if inside else f" that ends in {', '.join(FORMATS)}; it has none"
        return f"{path} is a folder. Name one file in it{such}."
    if not path.exists():
        there = [f for f in path.parent.iterdir() if f.suffix.lower() in FORMATS] if path.parent.is_dir() else []
        stems = {f.stem: f for f in sorted(there, key=lambda f: f.suffix == path.suffix)}
        near = get_close_matches(path.stem, stems, 1, _ALIKE)
        return f"the file {path} does not exist{f'; did you mean {stems[near[0]]}?' if near else '.'}"
    if path.suffix.lower() not in FORMATS:
        return f"{path} must end in {', '.join(FORMATS)}."
    if path.is_file() and not path.stat().st_size:
        return f"{path} is empty (0 bytes)."
    return ""


def read_table(path: str, split: str, limit: int = 0, subset: str = "", key: str = "data") -> Table:
    """All rows, or the first ``limit``. ``split`` and ``subset`` count for hub ids only; ``key``: as in ``Table``.

    Raises InputError naming the path when it is missing, empty, unreadable or cannot be fetched.
    """
    table = _read_file(Path(path), limit, key) if is_local(path) else _read_hub(path, split, limit, subset, key)
    if not table.length:
        raise InputError(f"{path} has no rows. Give a file with at least one question.")
    return table


def _read_file(path: Path, limit: int, key: str) -> Table:
    if problem := file_problem(path):
        keys = "data.path and data.eval_path take" if key == "data" else f"{key}.path takes"
        raise InputError(f"The data cannot be read: {problem} {keys} a file or a hub id.")
    readers = {".parquet": _read_parquet, ".csv": _read_csv}
    try:
        with path.open("rb") as file:
            if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
                raise ValueError("it is a Git LFS pointer, not the data itself; `git lfs pull` fetches that")
            file.seek(0)
            cells, length = readers.get(path.suffix.lower(), _read_json)(file, limit)
    except (ValueError, OSError, NotImplementedError, csv.Error) as error:
        raise InputError(
            f"The data file {path} cannot be read as {path.suffix[1:]}: {_first_line(error)}. Check that it is "
            "complete and that its content fits its ending."
        ) from error
    return Table(str(path), cells, length, key)


def _read_parquet(file: BinaryIO, limit: int) -> tuple[Mapping[str, Sequence[Any]], int]:
    import pyarrow
    import pyarrow.parquet

    source = pyarrow.parquet.ParquetFile(file)
    if limit:
        batches, rows = [], 0
        for batch in source.iter_batches():
            batches.append(batch)
            if (rows := rows + len(batch)) >= limit:
                break
        table = pyarrow.Table.from_batches(batches, source.schema_arrow).slice(0, limit)
    else:
        table = source.read()
    _require_distinct(table.column_names)
    return dict(zip(table.column_names, table.columns, strict=True)), table.num_rows


def _read_csv(file: BinaryIO, limit: int) -> tuple[Mapping[str, Sequence[Any]], int]:
    csv.field_size_limit(sys.maxsize)  # a story may be longer than the module's 128 KiB
    reader = csv.reader(_lines(file), strict=True)
    header = next((cells for cells in reader if cells), [])
    _require_distinct(header)
    rows: list[list[str]] = []
    for cells in reader:
        if cells and len(cells) != len(header):
            raise ValueError(
                f"the row that ends on line {reader.line_num} has {len(cells)} cells, and the header {len(header)}"
            )
        if cells:  # a blank line is no row
            rows.append(cells)
        if limit and len(rows) == limit:
            break
    return dict(zip(header, zip(*rows, strict=True) if rows else [[]] * len(header), strict=True)), len(rows)


def _read_json(file: BinaryIO, limit: int) -> tuple[Mapping[str, Sequence[Any]], int]:
    """JSON lines; or one document: a list of objects, an object around such a list, or one object."""
    found: list[Any] = []
    for number, line in enumerate(_lines(file), start=1):
        if not (line := line.strip()):
            continue
        try:
            found.append(_parsed(line))
        except json.JSONDecodeError as error:
            if found:
                raise ValueError(f"line {number}, column {error.colno}: {error.msg}") from error
            break  # no JSON lines: a document over several lines, or nothing that can be read
        if limit and len(found) == limit and isinstance(found[0], dict):
            break
    if not found:
        file.seek(0)
        try:
            found = [_parsed("".join(_lines(file)))]
        except json.JSONDecodeError as error:
            raise ValueError(f"line {error.lineno}, column {error.colno}: {error.msg}") from error
    rows = _unwrapped(found[0]) if len(found) == 1 else found
    rows = rows[:limit] if limit else rows
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ValueError(f"row {number} is a {type(row).__name__}, not an object with a value for each column")
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}, len(rows)


def _unwrapped(document: Any) -> list[Any]:
    """The rows of a document: a list's, those of the list under "data" or under the only name, else itself."""
    if isinstance(document, dict):
        inner = document.get("data") or (next(iter(document.values())) if len(document) == 1 else None)
        is_table = isinstance(inner, list) and inner and all(isinstance(row, dict) for row in inner)
        return inner if is_table else [document]  # type: ignore[return-value]
    return document if isinstance(document, list) else [document]


def _parsed(text: str) -> Any:
    value = json.loads(text)
    if (at := text.lower().find(r"\ud")) >= 0:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:  # no tokenizer takes it
            raise json.JSONDecodeError("half of a surrogate pair", text, at) from error
    return value


def _lines(file: BinaryIO) -> Iterable[str]:
    """The lines with their ends, decoded; ValueError names the one that is not UTF-8."""
    for number, line in enumerate(file, start=1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"line {number} is not UTF-8 ({error.reason}); save the file as UTF-8") from error


def _require_distinct(columns: list[str]) -> None:
    twice = next((name for i, name in enumerate(columns) if name in columns[:i]), None)
    if twice is not None:
        raise ValueError(f"it has two columns {twice!r}; rename or remove one")


def _read_hub(path: str, split: str, limit: int, subset: str, key: str) -> Table:
    import datasets

    try:
        with quiet_hub():
            data = datasets.load_dataset(path, subset or None, split=split)
    except (ValueError, OSError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise InputError(
            f"The data set {path} (split {split!r}) cannot be loaded from the Hugging Face hub: {_first_line(error)}. "
            f"Check its name, its split, its subset ({key}.subset) and your access to it; without a network, give a "
            f"local file ({' '.join(FORMATS)}) instead."
        ) from error
    data = data.select(range(min(limit, len(data)))) if limit else data
    return Table(path, {name: data[name] for name in data.column_names}, len(data), key)


@contextmanager
def quiet_hub() -> Iterator[None]:
    """huggingface_hub warns at every attempt; what comes of the last one is the error that is raised."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _inside(cell: Any, path: str) -> Any:
    for name in path.split("."):
        cell = cell.get(name) if isinstance(cell, Mapping) else None
    return cell


def _listing(columns: list[str]) -> str:
    shown = ", ".join(map(repr, columns[:_SHOWN])) or "none"
    return shown if len(columns) <= _SHOWN else f"{shown} and {len(columns) - _SHOWN} more"


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
