"""Files that are either the old one or the new one, never half of it; and what is wrong with somebody else's."""

import ctypes
import fcntl
import json
import os
import shutil
from errno import EINVAL, ENOTSUP
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO

from megatron_rl.errors import InputError, named

_POINTER = b"version https://git-lfs.github.com/spec/"  # how a file begins in whose place Git LFS left a pointer


def write_text(path: Path, text: str) -> None:
    """As ``write_bytes``, in UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Replace ``path`` with ``content``: written beside it, flushed to the disk, renamed."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        flush(path.parent)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def require_place(path: Path, said: str) -> None:
    """Raises InputError when no file can be written at ``path``; ``said``: how it was asked for, ``--out a.html``."""
    folder = path.absolute().parent
    if path.is_dir():
        raise InputError(f"{said} is a folder: name a file.")
    if not folder.is_dir():
        raise InputError(f"{said}: its folder does not exist.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{said}: there is no permission to write in {folder}.")


def require_new(path: Path, said: str, what: str) -> None:
    """As ``require_place``, for a file that replaces none: ``what``, such as ``rows``, may be all that there is."""
    require_place(path, said)
    if os.path.lexists(path):
        raise InputError(f"{said} exists already; {what} are written to a new file only. Name another.")


def replace_folder(new: Path, target: Path) -> None:
    """Let ``target`` be the complete folder ``new``, beside it, at one moment; what it was before is removed."""
    if target.exists():
        if _exchange(new, target):
            flush(target.parent)
            shutil.rmtree(new)
            return
        shutil.rmtree(target)  # a file system that cannot exchange two names: for a moment there is none
    new.rename(target)
    flush(target.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names atomically (Linux' renameat2); False where the file system cannot."""
    at_working_directory, exchange = -100, 2
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    arguments = (at_working_directory, os.fsencode(one), at_working_directory, os.fsencode(other), exchange)
    return rename is not None and rename(*arguments) == 0


def flush(path: Path) -> None:
    """Bring a file, or a folder's list of names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (EINVAL, ENOTSUP):  # some file systems have it for files only
            raise
    finally:
        os.close(handle)


def flush_folder(folder: Path) -> None:
    """Bring the files right inside a folder, and its list of names, to the disk."""
    for path in (*(p for p in folder.iterdir() if p.is_file()), folder):
        flush(path)


def folder_beside(target: Path) -> Path:
    """A new folder to write into what ``rename_folder`` then calls ``target``.

    It has the same name every time: what an attempt that was killed left there is removed.
    """
    beside = target.with_name(f".{target.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    return beside


def rename_folder(complete: Path, target: Path) -> None:
    """Give a folder that is complete its name, beside which it lies: after a power cut it is there whole, or not."""
    flush_folder(complete)
    complete.rename(target)
    flush(target.parent)


def reserve(folder: Path, advice: str) -> BinaryIO:
    """Have a folder for this process alone, until what is returned is closed or the process ends.

    Raises InputError with ``advice`` when another process has it. A file system without locks is warned of.
    """
    lock = (folder / ".lock").open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise InputError(advice) from None
    except OSError as error:
        print(
            f"warning: the file system of {folder} has no locks ({error.strerror}): start no second process in this "
            "folder."
        )
    return lock


def held(folder: Path) -> bool:
    """Whether a process has a folder by ``reserve``; True where its file system has no locks to tell by."""
    try:
        with (folder / ".lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def require_space(folder: str | Path, needed: int, what: str, advice: str) -> None:
    """Raises InputError when the file system of ``folder`` has less than ``needed`` bytes free for ``what``."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(f"{folder} has {free / 1e6:.0f} MB free; {what} needs {needed / 1e6:.0f} MB. {advice}")


def not_content(path: Path) -> str:
    """Why an existing file is not the one that its name promises, empty or a Git LFS pointer; "" when it is neither."""
    with path.open("rb") as file:
        begin = file.read(len(_POINTER))
    if not begin:
        return f"{path} is empty (0 bytes). Fetch it again."
    if begin == _POINTER:
        return (
            f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` in its folder, or fetch the model "
            f"with `hf download`."
        )
    return ""


def leads_nowhere(folder: Path, *patterns: str) -> str:
    """The first entry of a folder, of those whose names fit, that is a link to what is gone, in a sentence; "" when
    there is none. A cache that was cleaned, or copied without what its links lead to, leaves such."""
    fitting = (path for path in sorted(folder.iterdir()) if any(fnmatchcase(path.name, p) for p in patterns))
    broken = next((path for path in fitting if path.is_symlink() and not path.exists()), None)
    return f"{broken} is a link to {os.readlink(broken)}, which is not there. Fetch it again." if broken else ""


def read_json(path: Path, needed: str = "") -> dict[str, Any]:
    """A JSON object from a file.

    Raises InputError when the file is missing (``needed`` says for what), cannot be read, or holds anything else.
    """
    try:
        if not path.is_file():
            raise InputError(f"{path} does not exist{f': {needed}' if needed else ''}.")
        if wrong := not_content(path):
            raise InputError(wrong)
        content = json.loads(path.read_bytes().decode("utf-8"))
    except InputError:
        raise
    except OSError as error:
        raise InputError(named(error)) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}). It may be cut short: fetch it again.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}; a JSON object is needed.")
    return content
