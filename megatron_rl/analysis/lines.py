"""Files of JSON lines as a run leaves them: still growing, cut off in their last line, damaged between."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


class Lines:
    """The objects of a file, each with the byte at which its line begins; what is none is counted and left out.

    ``damaged``: lines that are no object; ``unfinished``: the file ends within a line, as while it is written.
    Both are of what has been read so far; a file that does not exist has no lines.
    """

    def __init__(self, path: Path, start: int = 0) -> None:
        self.path, self.end = path, start  # end: the byte behind the last whole line
        self.damaged, self.unfinished = 0, False

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        if not self.path.is_file():
            return
        with self.path.open("rb") as file:
            file.seek(self.end)
            for line in file:
                start = self.end
                self.unfinished = not line.endswith(b"\n")
                if self.unfinished:
                    return
                self.end += len(line)
                if (row := parsed(line)) is not None:
                    yield start, row
                else:
                    self.damaged += 1


def parsed(line: bytes) -> dict[str, Any] | None:
    """The object in a line; None when there is none."""
    try:
        row = json.loads(line.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def at(path: Path, offsets: Sequence[int]) -> Iterator[dict[str, Any] | None]:
    """The rows whose lines begin at these bytes, in the order given; None for one that a continued run has cut off."""
    if not offsets:
        return
    with path.open("rb") as file:
        for offset in offsets:
            file.seek(offset)
            yield parsed(file.readline())
