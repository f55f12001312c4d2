"""The end of a log, which may be large: it is read from there. Imports no torch."""

import os
from pathlib import Path

_LAST_BYTES = 1 << 18  # that are looked at


def last_lines(log: Path, since: int = 0) -> list[str]:
    """The last lines of a log, of what was written from byte ``since`` on; a line that begins before them is left out.

    Raises OSError.
    """
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        begin = max(since, size - _LAST_BYTES)
        file.seek(begin)
        lines = file.read(_LAST_BYTES).decode("utf-8", errors="replace").splitlines()
    return lines[1:] if begin > since and len(lines) > 1 else lines


def told(lines: list[str], count: int, width: int = 400) -> str:
    """The last ``count`` of them, each in a line of its own that is indented and cut to ``width``."""
    return "".join(f"\n  {line[:width]}" for line in lines[-count:])
