"""What goes wrong: for a user to read (``InputError``, ``RunError``), and between the processes of a swap."""

from collections.abc import Sequence
from errno import (
    EACCES,
    EDQUOT,
    EFBIG,
    EIO,
    ELOOP,
    EMFILE,
    ENAMETOOLONG,
    ENFILE,
    ENOLCK,
    ENOMEM,
    ENOSPC,
    ENOTDIR,
    EPERM,
    EROFS,
    ESTALE,
)

_OF_THE_MACHINE = frozenset(  # what the system says about its files and limits; the other numbers may be our faults
    [EACCES, EFBIG, EIO, ELOOP, EMFILE, ENAMETOOLONG, ENFILE, ENOLCK, ENOMEM, ENOTDIR, EPERM, EROFS, ESTALE]
)


class InputError(ValueError):
    """Bad input: a configuration, a file or a machine that cannot serve the run.

    The message is one paragraph that names the file, key or value and says what to do. The command
    line prints it without a traceback and exits with code 2.
    """


class RunError(RuntimeError):
    """A run that must not go on, though nothing was wrong with its input: it diverged, or nothing can be scored.

    The message is one paragraph, as an InputError's. The command line prints it without a traceback and exits with
    code 1.
    """


class Interrupted(KeyboardInterrupt):
    """A signal has ended a command; the message says how it goes on. The exit code is 128 + ``signal``."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


class SwapError(RuntimeError):
    """The weights in an engine are not the weights that were trained."""


class LinkError(SwapError):
    """A process of a swap is lost or late: the way to the weights must be made anew."""


def named(error: OSError) -> str:
    """What the system refused, as a sentence that names the file."""
    reason = error.strerror or str(error)
    if error.errno in (ENOSPC, EDQUOT):
        reason = "no space left there"
    return f"{error.filename} cannot be used: {reason}." if error.filename else f"The system refused: {reason}."


def refuse(problems: Sequence[str]) -> None:
    """Raises InputError with all that is wrong, numbered where it is more than one thing; does nothing for nothing."""
    if len(problems) == 1:
        raise InputError(problems[0])
    if problems:
        listed = " ".join(f"({number}) {problem}" for number, problem in enumerate(problems, 1))
        raise InputError(f"{len(problems)} problems: {listed}")


def refused(error: BaseException) -> InputError | None:
    """What to tell the user when the machine is at the root of an exception; None when it is not.

    That is a full disk, a place that cannot be written or read, or a limit of the system. A file that is not there
    (ENOENT) is not among them: whoever opens a user's file says so, and the rest are faults of this program.
    """
    if (full := full_disk(error)) is not None:
        return full
    if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
        return InputError(named(error))
    return None


def full_disk(error: BaseException) -> InputError | None:
    """What to tell the user when a full disk is at the root of an exception; None when it is not."""
    seen: list[BaseException] = []
    found: BaseException | None = error
    while found is not None and found not in seen:
        seen.append(found)
        if getattr(found, "errno", None) in (ENOSPC, EDQUOT) or "No space left on device" in str(found):
            where = next((e.filename for e in seen if isinstance(e, OSError) and e.filename), None)
            return InputError(
                f"The disk is full{f': {where} could not be written' if where else ''}. Free some space, or set "
                "run.folder to another disk; with run.resume=auto the same command continues from the last checkpoint."
            )
        found = found.__cause__ or found.__context__
    return None
