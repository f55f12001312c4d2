"""Copying runs of bytes between files inside the kernel."""

import errno
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from megatron_rl.errors import InputError

# What kernels and file systems answer where they cannot copy between these two files.
_REFUSED = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM, errno.ETXTBSY}


class Files:
    """Open files of one thread. ``busy`` has a lock for every file that several threads write."""

    def __init__(self, target: Path, busy: Mapping[str, AbstractContextManager[Any]] | None = None) -> None:
        self.target, self._busy = target, busy or {}
        self._handles: dict[tuple[Path, int], int] = {}

    def open(self, path: Path, flags: int = os.O_RDONLY) -> int:
        """A handle, opened at the first call. Paths that are written are relative to the target."""
        if (path, flags) not in self._handles:
            full = self.target / path if flags != os.O_RDONLY else path
            self._handles[path, flags] = os.open(full, flags)
        return self._handles[path, flags]

    def turn(self, path: Path) -> AbstractContextManager[Any]:
        """To be held while writing to a file: where the kernel lets one thread write, a second one would spin."""
        return self._busy.get(str(path), nullcontext())

    def __enter__(self) -> "Files":
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles.values():
            os.close(handle)


class Run(NamedTuple):
    """Bytes that are contiguous on both sides."""

    source: Path
    source_offset: int
    destination: Path
    destination_offset: int
    size: int


def _through_memory(source: int, destination: int, size: int, read: int, write: int) -> int:
    buffer = memoryview(bytearray(min(size, 1 << 20)))
    count = os.preadv(source, [buffer], read)
    return os.pwrite(destination, buffer[:count], write)


def _sendfile(source: int, destination: int, size: int, read: int, write: int) -> int:
    os.lseek(destination, write, os.SEEK_SET)
    return os.sendfile(destination, source, read, size)


def _copy_file_range(source: int, destination: int, size: int, read: int, write: int) -> int:
    return os.copy_file_range(source, destination, size, read, write)


WAYS: tuple[Callable[[int, int, int, int, int], int], ...] = (_copy_file_range, _sendfile, _through_memory)


def copy_run(files: Files, run: Run, ways: list[Callable[[int, int, int, int, int], int]]) -> None:
    """Copy a run by the first of ``ways`` that the kernel allows; those that it refuses are taken off the list.

    Raises InputError naming a source that has become shorter than it was.
    """
    source, destination = files.open(run.source), files.open(run.destination, os.O_WRONLY)
    done = 0
    while done < run.size:
        way = ways[0]
        try:
            count = way(source, destination, run.size - done, run.source_offset + done, run.destination_offset + done)
        except OSError as error:
            if error.errno not in _REFUSED or way is WAYS[-1]:
                raise
            ways[:] = WAYS[WAYS.index(way) + 1 :]  # the same whichever thread finds out first
            continue
        if count == 0:
            raise InputError(f"{run.source} ends at byte {run.source_offset + done}: it became shorter meanwhile.")
        done += count
