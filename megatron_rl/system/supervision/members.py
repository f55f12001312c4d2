"""Groups of processes on other machines, as their supervisors tell each other about them.

A supervisor that leads has a ``Node`` for each that follows it, and each of these has the other end, a ``Lead``. What
goes over the connection: to the follower ("end",); to the lead ("asked", signal) and, last, ("ended", code, message).
"""

import contextlib
import os
import signal
import socket
from multiprocessing.connection import Connection
from typing import Any

LOST = 75  # exit code: a machine, or the way to it, was lost (sysexits.h calls it a temporary failure)


class Lead:
    """The supervisor that leads this one's."""

    def __init__(self, connection: Connection) -> None:
        self.connection, self.closed, self.wants_end = connection, False, False

    @property
    def gone(self) -> bool:
        """Whether it went without a word."""
        return self.closed and not self.wants_end

    def fileno(self) -> int:
        return self.connection.fileno()

    def hear(self) -> None:
        """Read what it says: either way this group is to end."""
        try:
            self.wants_end |= self.connection.recv() == ("end",)
        except (EOFError, OSError):
            self.closed = True

    def asked(self, number: int) -> None:
        """Tell it that this machine's processes have been asked to stop."""
        self._say("asked", number)

    def ended(self, code: int, message: str) -> None:
        """Tell it how this group has ended."""
        self._say("ended", code, message)

    def _say(self, *words: Any) -> None:
        with contextlib.suppress(OSError):
            self.connection.send(words)


class Node:
    """A follower: the group of processes on another machine. ``service``: it only serves the others."""

    def __init__(self, name: str, connection: Connection, service: bool = False) -> None:
        self.name, self.connection, self.service = name, connection, service
        self.code: int | None = None  # how it has ended; LOST when it is gone without a word
        self.message = ""
        self.asked = 0  # the signal by which its machine was asked to stop
        self.let_go = False  # asked to end

    def fileno(self) -> int:
        return self.connection.fileno()

    def hear(self) -> None:
        """Read what it says."""
        try:
            kind, *rest = self.connection.recv()
        except (EOFError, OSError):
            self.code = 0 if self.let_go else LOST
            self.message = f"{self.name} is lost: it is down or cannot be reached, or its processes were killed."
            return
        if kind == "asked":
            self.asked = rest[0]
        else:
            self.code, said = rest
            self.message = f"On {self.name}: {said}" if said else ""

    def signal(self, number: signal.Signals) -> None:
        """SIGTERM asks it to end, SIGKILL cuts it off, whereupon it ends at once."""
        self.let_go = True
        with contextlib.suppress(OSError):
            if number == signal.SIGKILL:
                with socket.socket(fileno=os.dup(self.connection.fileno())) as line:
                    line.shutdown(socket.SHUT_RDWR)
            else:
                self.connection.send(("end",))
