"""What a command prints, with signs of life between: what goes on, and for how long, while nothing else is printed.

A process says what it does next by ``activity``: a line that the screen of its supervisor takes out of what it
prints. On a terminal it is shown in place after a moment of silence; elsewhere it is a line now and then. A process
may also give a panel, lines that stay at the foot of a terminal, with what goes on below them.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Callable
from typing import TextIO

SHOWN = "MEGATRON_RL_ACTIVITY"  # environment variable of processes whose activities somebody shows
LIVE = "MEGATRON_RL_PANEL"  # environment variable of processes whose panels somebody shows
QUIET = 2.0  # seconds without a line, after which a terminal shows what goes on
REWRITTEN = 1.0  # seconds between two versions of that line
LINE = 30.0  # seconds without a line, after which others than terminals get one; the next after twice as long
_MARK = "\x1e"  # "record separator": begins an activity, and nothing that people print
_PANEL, _NEXT = "\x1d", "\x1f"  # after the mark: a panel; between its lines
_ERASE, _UP = "\r\x1b[K", "\x1b[1A\x1b[K"


def activity(what: str) -> None:
    """Say what this process does next, for whoever waits meanwhile ("step 12: generating")."""
    if os.environ.get(SHOWN):
        print(f"{_MARK}{what}", flush=True)


def live() -> bool:
    """Whether somebody shows this process's panels: on a terminal."""
    return bool(os.environ.get(LIVE))


def panel(text: str) -> None:
    """Have these lines stay at the foot of the terminal, in place of those before."""
    if live():
        print(f"{_MARK}{_PANEL}{text.replace(chr(10), _NEXT)}", flush=True)


def duration(seconds: float) -> str:
    """12 s, 3 min 05 s, 2 h 07 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


class Screen:
    """Passes on what a process prints to ``out``, and shows its activities in the silence between."""

    def __init__(self, out: TextIO, what: str = "starting", clock: Callable[[], float] = time.monotonic) -> None:
        self.out, self.clock, self.terminal = out, clock, out.isatty()
        self.may_be_gone = False  # whether it is no error when nothing can be written any more
        self.unread = False  # whoever read it has gone, as at the end of `… | head`
        self._what, self._since = what, clock()
        self._printed, self._due = clock(), LINE  # when the last line was; the silence that is broken next
        self._panel: list[str] = []
        self._shown = 0  # lines on the terminal that are to be taken away: the panel and the activity
        self._at_start = True  # of a line
        self._held = ""  # the beginning of an activity

    def write(self, text: str) -> str:
        """Print what a process printed; returns it without the activities."""
        passed = []
        while text:
            end = text.find("\n") + 1
            if self._held or (self._at_start and text.startswith(_MARK)):
                self._held += text[:end] if end else text
                if end:
                    self._said(self._held[1:-1])
                    self._held = ""
            else:
                passed.append(text[:end] if end else text)
                self._at_start = bool(end)
            text = text[end:] if end else ""
        self._print("".join(passed))
        return "".join(passed)

    def line(self, text: str) -> None:
        """Print a line of the command's own."""
        self._print(f"{text}\n")

    def tick(self) -> float:
        """Show what goes on if it is time to; returns the seconds until it may be time again."""
        now = self.clock()
        silence, limit = now - self._printed, self._due
        if self.terminal:
            limit = 0.0 if self._panel else QUIET
        if not self._at_start:
            return limit
        if silence < limit:
            return limit - silence
        said = f"… {self._what} ({duration(now - self._since)})"
        if self.terminal:
            columns = shutil.get_terminal_size().columns - 1
            lines = [line[:columns] for line in (*self._panel, said)]
            self._out(self._erased() + "\n".join(lines))
            self._shown = len(lines)
            return REWRITTEN
        self._out(f"{said}\n")
        self._due *= 2
        return self._due - silence

    def close(self) -> None:
        """Take away what is shown."""
        if self._shown:
            self._out(self._erased())
            self._shown = 0

    def show(self, panel: str) -> None:
        """Have this panel shown, as if a process had given it."""
        self._panel = panel.splitlines()

    def _said(self, what: str) -> None:
        if what.startswith(_PANEL):
            self._panel = what[1:].split(_NEXT)
        else:
            self._what, self._since = what, self.clock()

    def _erased(self) -> str:
        return _ERASE + _UP * (self._shown - 1)

    def _print(self, text: str) -> None:
        if text:
            self.close()
            self._out(text)
            self._printed, self._due = self.clock(), LINE

    def _out(self, text: str) -> None:
        if self.unread:
            return
        with contextlib.suppress(*([OSError] if self.may_be_gone else [])):
            try:
                self.out.write(text)
                self.out.flush()
            except BrokenPipeError:
                self.unread = True
