"""How a run is asked to stop: at the end of a step, with a checkpoint. Imports no torch.

The supervisor passes Ctrl-C, SIGTERM and SIGHUP on to the first rank alone, as SIGTERM. From ``install`` on that rank
only remembers it; the training loop asks ``requested`` at the end of each step, shares the answer with the other
ranks, and then all of them save a checkpoint and end with exit code 0. Before ``install`` SIGTERM ends the rank at
once, and with it the run: there is nothing yet to save.
"""

import os
import signal
from types import FrameType

_asked = False


def install() -> None:
    """From now on a SIGTERM asks this process to stop, and a second one ends it; call it from the main thread."""
    global _asked
    _asked = False
    signal.signal(signal.SIGTERM, _ask)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's reaches the supervisor, which passes it on


def requested() -> bool:
    """Whether this process has been asked to stop."""
    return _asked


def _ask(number: int, _: FrameType | None) -> None:
    global _asked
    if _asked:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    _asked = True
