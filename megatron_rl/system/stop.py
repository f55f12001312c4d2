"""How a run is asked to stop: at the end of a step, with a checkpoint. Imports no torch.

The supervisor passes Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 on to the first rank alone, as SIGTERM. From ``install`` on
that rank only remembers it; the training loop asks ``requested`` at the end of each step, shares the answer with the
other ranks, and then all of them save a checkpoint and end with exit code 0. Before ``install`` SIGTERM ends the rank
at once, and with it the run: there is nothing yet to save.

A batch system sends SIGTERM to every process of a job at once, and so a second time to the first rank: who must not
die of it until the step is done has said so by ``install`` or by ``leave_to_parent``.
"""

import os
import signal
from types import FrameType

_asked = False


def install() -> None:
    """From now on a SIGTERM asks this process to stop, however often it comes; call it from the main thread."""
    global _asked
    _asked = False
    signal.signal(signal.SIGTERM, _ask)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's reaches the supervisor, which passes it on


def requested() -> bool:
    """Whether this process has been asked to stop."""
    return _asked


def leave_to_parent() -> None:
    """From now on SIGTERM does nothing to this process, which its parent ends by other means; from the main thread.

    What this process starts is ended by SIGTERM as ever.
    """
    signal.signal(signal.SIGTERM, _nothing)  # and not SIG_IGN, which a program would keep that is started from here
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def _ask(_: int, __: FrameType | None) -> None:
    global _asked
    _asked = True


def _nothing(_: int, __: FrameType | None) -> None:
    pass
