"""What every process that ``megatron-rl train`` starts does first and last.

``python -m megatron_rl.system.processes PID COMMAND…`` becomes COMMAND after asking the kernel to kill it when its
parent, process PID, dies: so even a SIGKILL of the parent leaves no orphan, whatever COMMAND is. It ignores SIGUSR1,
which a batch system sends to every process of a job and means for the supervisor alone.
"""

import atexit
import ctypes
import gc
import itertools
import os
import re
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from megatron_rl.errors import InputError, RunError, refused

FAILED = 1  # exit code of a command one of whose processes failed
BAD_INPUT = 2  # exit code of a process that ended with an InputError
RUN_ENDED = 3  # exit code of a process that ended with a RunError; the command's is 1
ERROR_PREFIX = "error: "  # such a process's last words start with it; what goes on in further lines is indented

# Environment of every process of ours: the locale says nothing about our files and pipes, which are UTF-8.
UTF8 = {"PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8:backslashreplace"}

_PR_SET_PDEATHSIG = 1


def settle() -> None:
    """Take what there is now for what stays: looking for garbage along all of it takes as long as making a batch.

    Again when some of it has gone: what refers to itself, as an optimiser with hooks does, would stay for good.
    """
    if not gc.get_freeze_count():
        atexit.register(gc.unfreeze)  # libraries count what is left at the end
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def speak_utf8() -> None:
    """First in a command: whatever the locale, names of files and what our processes tell each other are UTF-8.

    Under a locale with another encoding the command begins anew in Python's UTF-8 mode. What it prints is in the
    terminal's encoding nevertheless, with ? for what that lacks.
    """
    if sys.getfilesystemencoding().lower() != "utf-8":
        os.environ.setdefault("PYTHONIOENCODING", f"{sys.stdout.encoding}:replace")
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    os.environ.update(UTF8)


def die_with_parent(parent: int | None = None) -> None:
    """Have the kernel kill this process when the thread that started it ends; Linux only.

    A ``parent`` (process id) that has died already ends this process here.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if parent is not None and os.getppid() != parent:
        sys.exit(1)


def tied_to_this_process(command: Sequence[str]) -> list[str]:
    """``command``, such that its process dies with the calling one."""
    return [sys.executable, "-m", "megatron_rl.system.processes", str(os.getpid()), *command]


def run(main: Callable[[], None]) -> None:
    """Run a process's main function.

    An ``InputError``, and what the machine refuses, becomes one paragraph and exit code 2; a ``RunError`` one with
    exit code 3.
    """
    try:
        main()
    except Exception as error:
        said = error if isinstance(error, InputError | RunError) else refused(error)
        if said is None:
            raise
        print(f"{ERROR_PREFIX}{indented(str(said))}", file=sys.stderr, flush=True)
        sys.exit(RUN_ENDED if isinstance(said, RunError) else BAD_INPUT)


def indented(message: str) -> str:
    """``message`` with every line but the first indented, which tells it from whatever is printed after it."""
    return re.sub(r"\n(?!  )", "\n  ", message)


def last_error(lines: Sequence[str]) -> str | None:
    """The last error that a process printed by ``run``, whole; None when there is none."""
    starts = [number for number, line in enumerate(lines) if line.startswith(ERROR_PREFIX)]
    if not starts:
        return None
    rest = itertools.takewhile(lambda line: line.startswith("  "), lines[starts[-1] + 1 :])
    return "\n".join([lines[starts[-1]].removeprefix(ERROR_PREFIX), *rest])


def program() -> str:
    """``megatron-rl`` where a shell finds this installation by that name, else the path of its script."""
    script = Path(sys.executable).with_name("megatron-rl")
    if not script.is_file():
        return f"{sys.executable} -m megatron_rl.cli"
    found = shutil.which("megatron-rl")
    if found and os.path.samefile(found, script):
        return "megatron-rl"
    return min(str(script), os.path.relpath(script), key=len)


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # what is ignored stays so in COMMAND, and in all that it starts
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # memory that is shared costs file descriptors
    os.execvp(sys.argv[2], sys.argv[2:])
