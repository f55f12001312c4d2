"""What SGLang's processes leave in shared memory when they are killed. Imports no torch."""

import contextlib
import glob
import os
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

from megatron_rl.system.scratch import SCRATCH

_MADE_BY = "/dev/shm/sgl_shm_"  # a file's maker is in its name: sgl_shm_KIND_PID_RANDOM
_NAMELESS = "/dev/shm/sglang_loads_"
_HOSTS = {"pid": 0xEFFFFFFC, "ipc": 0xEFFFFFFF}  # inodes of the first namespaces (Linux' proc_ns.h)
_YOUNG = 5.0  # seconds in which a file may be mapped that nobody has mapped yet
_END_SECONDS = 5.0


def mapped_by(pid: int) -> set[str]:
    """The files of SGLang's that a process has mapped."""
    with contextlib.suppress(OSError):  # it is gone, or another user's
        lines = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace").splitlines()
        return {line[at:] for line in lines if (at := max(line.find(_MADE_BY), line.find(_NAMELESS))) >= 0}
    return set()


def remove(mapped: Iterable[str] = ()) -> None:
    """Remove this user's files that are ``mapped`` (by processes that were killed), or that nobody needs any more."""
    gone, unsure = {*mapped}, set[str]()
    if not _others_unseen():
        unsure = {path for path in glob.glob(f"{_MADE_BY}*") if _maker_gone(path)}
        unsure |= {path for path in glob.glob(f"{_NAMELESS}*") if _old(path)}
    unsure -= gone
    if unsure:  # a container that shares this memory has other process ids
        gone |= unsure - {path for pid in psutil.pids() for path in mapped_by(pid)}
    for path in gone:
        with contextlib.suppress(OSError):
            if os.stat(path).st_uid == os.getuid():
                os.unlink(path)


def remove_after(scratch: Path) -> None:
    """After a run's end: remove what its servers left, when the last process that belongs to it is gone."""
    deadline = time.monotonic() + _END_SECONDS
    while any(_belongs(process, scratch) for process in psutil.process_iter()) and time.monotonic() < deadline:
        time.sleep(0.05)
    remove()


def _belongs(process: psutil.Process, scratch: Path) -> bool:
    with contextlib.suppress(psutil.Error, OSError):
        return process.pid != os.getpid() and process.environ().get(SCRATCH) == str(scratch)
    return False


def _others_unseen() -> bool:
    """Whether this container shares the host's memory (docker's --ipc=host), of whose processes it sees none."""
    kinds = {kind: os.stat(f"/proc/self/ns/{kind}").st_ino for kind in _HOSTS}
    return kinds["pid"] != _HOSTS["pid"] and kinds["ipc"] == _HOSTS["ipc"]


def _maker_gone(path: str) -> bool:
    try:
        return not psutil.pid_exists(int(path.split("_")[-2]))
    except ValueError:
        return False


def _old(path: str) -> bool:
    try:
        found = os.stat(path)
    except OSError:
        return False
    return found.st_uid == os.getuid() and time.time() - found.st_mtime > _YOUNG
