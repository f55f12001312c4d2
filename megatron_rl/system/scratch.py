"""Folders for sockets and keys that do not outlive their command, however it ends. Imports no torch."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

SCRATCH = "MEGATRON_RL_SCRATCH"  # environment variable: the folder of the run that a process belongs to
_PREFIX = "mrl-"
_OWNED = ".owned"  # locked as long as the process lives that made the folder


@contextlib.contextmanager
def made(where: str | None = None) -> Iterator[Path]:
    """A folder of mode 0700, in ``where`` or the system's place; removed at the end, with those of killed commands."""
    where = where or tempfile.gettempdir()
    _sweep(where)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=where))
    # Locked before it has its name: whoever finds it under that name finds it locked, or its owner gone.
    with open(folder / f"{_OWNED}~", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.rename(lock.name, folder / _OWNED)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _sweep(where: str) -> None:
    for folder in Path(where).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if folder.lstat().st_uid == os.getuid():
                with open(folder / _OWNED, "rb") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
