"""The records of an evaluation as JSON lines: one that was killed goes on where it was."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from megatron_rl.errors import InputError
from megatron_rl.system.files import reserve, write_text


class Records:
    """A file whose first line says what was evaluated how (``identity``), and whose others are completions.

    A line that is cut short, those of a prompt that has not all its ``samples``, and any but the first of the same
    completion are removed. Raises InputError for a file of another evaluation, saying what differs.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], samples: int) -> None:
        self.path, self.identity = path, json.loads(json.dumps(identity))
        path.parent.mkdir(parents=True, exist_ok=True)
        self.created, self.rows, size = self._read(samples)
        self._file = path.open("ab")
        self._file.truncate(size)
        if not size:
            self._write([{"identity": self.identity, "created": self.created}])

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add records; they are on the disk when this returns."""
        self._write(rows)
        self.rows += [dict(row) for row in rows]

    def close(self) -> None:
        """Nothing more is added."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._file.write(_text(rows).encode("utf-8", "replace"))
        self._file.flush()
        os.fsync(self._file.fileno())

    def _read(self, samples: int) -> tuple[str, list[dict[str, Any]], int]:
        """When it was begun, the records that are kept, and how many bytes of the file they take."""
        lines = _lines(self.path) if self.path.exists() else []
        if not lines:
            return datetime.now(UTC).isoformat(timespec="seconds"), [], 0
        (head, size), *rest = lines
        if "identity" not in head:
            raise InputError(f"{self.path} holds no evaluation: name another place with --out.")
        if rest:
            _require_same(self.path, head["identity"], self.identity)
        elif head["identity"] != self.identity:  # nothing was answered
            return datetime.now(UTC).isoformat(timespec="seconds"), [], 0
        once = _first_of_each(rest)
        if len(once) < len(rest):
            rows = [row for row, _ in once[: len(once) - len(once) % samples]]
            write_text(self.path, _text([head, *rows]))
            return head["created"], rows, self.path.stat().st_size
        kept = rest[: len(rest) - len(rest) % samples]
        return head["created"], [row for row, _ in kept], kept[-1][1] if kept else size


def read_records(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The identity and the records of a file. Raises InputError for a file that is missing or none of an evaluation."""
    lines = _lines(path) if path.is_file() else []
    if not lines or "identity" not in lines[0][0]:
        raise InputError(f"{path} holds no records of an evaluation: it must be the .jsonl that `evaluate` wrote.")
    return lines[0][0]["identity"], [row for row, _ in _first_of_each(lines[1:])]


@contextmanager
def reserved(folder: Path) -> Iterator[None]:
    """A folder of evaluations, made where it is not there, for this process alone. Raises InputError when another
    process has it."""
    folder.mkdir(parents=True, exist_ok=True)
    taken = f"Another process is evaluating in {folder}: wait for it, end it, or name another place with --out."
    with closing(reserve(folder, taken)):
        yield


def _text(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _first_of_each(lines: Sequence[tuple[dict[str, Any], int]]) -> list[tuple[dict[str, Any], int]]:
    """The lines without those of a completion that an earlier one has: two processes may have written into one file."""
    seen, found = set(), []
    for row, end in lines:
        if "sample" in row:
            key = (row.get("item"), row.get("form"), row["sample"])
            if key in seen:
                continue
            seen.add(key)
        found.append((row, end))
    return found


def _lines(path: Path) -> list[tuple[dict[str, Any], int]]:
    """The objects of a file up to the first line that is none, and where the line of each ends."""
    found, end = [], 0
    with path.open("rb") as file:
        for line in file:
            end += len(line)
            try:
                row = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n") or not isinstance(row, dict):
                break
            found.append((row, end))
    return found


def _require_same(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    differing = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    if differing:
        said = "; ".join(f"{key} was {old.get(key)!r} and is {new.get(key)!r}" for key in differing)
        raise InputError(f"{path} is of another evaluation ({said}): name another place with --out, or remove it.")
