"""Folders for sockets, keys and caches that do not outlive their command, however it ends. Imports no torch."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from megatron_rl.errors import InputError

SCRATCH = "MEGATRON_RL_SCRATCH"  # environment variable: the folder of the run that a process belongs to
LONGEST = 60  # bytes of a place's path: a socket's whole path has at most 107, and libraries add some 40
_PREFIX = "mrl-"
_OWNED = ".owned"  # locked as long as the process lives that made the folder
_OFFER = ("/tmp", "/var/tmp", "/dev/shm")
_CACHES = {  # environment variable: the folder in the home that a library would write to
    "HF_DATASETS_CACHE": ".cache/huggingface/datasets",
    "HF_MODULES_CACHE": ".cache/huggingface/modules",
    "TRITON_CACHE_DIR": ".triton/cache",
    "FLASHINFER_WORKSPACE_BASE": ".cache/flashinfer",
    "MPLCONFIGDIR": ".config/matplotlib",
    "WANDB_CACHE_DIR": ".cache/wandb",
    "WANDB_CONFIG_DIR": ".config/wandb",
    "WANDB_DATA_DIR": ".local/share/wandb",
}


@contextlib.contextmanager
def made(where: str | None = None) -> Iterator[Path]:
    """A folder of mode 0700, in ``where`` or the first place that has room for sockets; removed at the end.

    Those of killed commands are removed with it. Raises InputError when there is no place for it.
    """
    folder = _make_in(where) if where else _make()
    # Locked before it has its name: whoever finds it under that name finds it locked, or its owner gone.
    with open(folder / f"{_OWNED}~", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.rename(lock.name, folder / _OWNED)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def places() -> list[str]:
    """Where sockets may be made, best first: what the environment names, then what every system has."""
    named = [os.environ.get(name, "") for name in ("TMPDIR", "TEMP", "TMP")]
    return list(dict.fromkeys([*filter(None, named), *_OFFER, *filter(None, [os.environ.get("XDG_RUNTIME_DIR")])]))


def temporary(folder: Path) -> dict[str, str]:
    """What libraries of a process need in their environment to find a place for their own temporary files and sockets:
    ``folder``, where the system's own place is too long for sockets or cannot be written; else nothing."""
    try:
        found = tempfile.gettempdir()
    except FileNotFoundError:  # none of the usual ones can be written
        found = ""
    return {} if found and len(os.fsencode(found)) <= LONGEST else {"TMPDIR": str(folder)}


def caches(folder: Path) -> dict[str, str]:
    """What libraries need in their environment where they cannot write into the home: places below ``folder``.

    Variables that are set already, and places in the home that can be written, stay as they are.
    """
    home = Path(os.path.expanduser("~"))
    hub = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "huggingface")
    found = {}
    for name, place in _CACHES.items():
        path = hub / Path(place).name if name.startswith("HF_") else home / place
        if name not in os.environ and not _writable(path):
            found[name] = str(folder / "caches" / name.lower())
    return found


def _make_in(place: str) -> Path:
    _sweep(place)
    return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))


def _make() -> Path:
    refused = []
    for place in places():
        if len(os.fsencode(place)) > LONGEST:
            refused.append(f"{place}: its path is too long for sockets")
            continue
        try:
            return _make_in(place)
        except OSError as error:
            refused.append(f"{place}: {error.strerror}")
    raise InputError(
        f"There is no place for the sockets at which the run's processes meet ({'; '.join(refused)}): set TMPDIR to a "
        f"folder that can be written, with a path of at most {LONGEST} bytes."
    )


def _writable(path: Path) -> bool:
    """Whether a folder can be written, or made."""
    while not os.path.lexists(path) and path != path.parent:
        path = path.parent
    try:  # permissions do not tell: not of root, and not of file systems that take nothing
        os.rmdir(tempfile.mkdtemp(prefix=f".{_PREFIX}", dir=path))
    except OSError:
        return False
    return True


def _sweep(where: str) -> None:
    for folder in Path(where).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if folder.lstat().st_uid == os.getuid():
                with open(folder / _OWNED, "rb") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
