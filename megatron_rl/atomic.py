"""Files that are either the old one or the new one, never half of it."""

import os
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` with ``text`` (UTF-8): written beside it, flushed to the disk, renamed."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def flush(path: Path) -> None:
    """Bring a file, or a folder's list of names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def flush_folder(folder: Path) -> None:
    """Bring the files right inside a folder, and its list of names, to the disk: before it is renamed, and after."""
    for path in (*(p for p in folder.iterdir() if p.is_file()), folder):
        flush(path)
