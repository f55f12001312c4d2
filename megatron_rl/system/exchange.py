"""An order and its answer over a connection, in an event loop that waits for thousands of them. Imports no torch.

A connection is watched, not read by a task of its own: of what rank 0 pays for one answer, tasks would be most.
"""

import asyncio
import contextlib
import os
import struct
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

_READ = 1 << 20  # bytes at a time


def message(content: Any) -> bytes:
    """What ``Connection.send`` sends of it: for many receivers, made once."""
    pickled = ForkingPickler.dumps(content)
    size = len(pickled)
    head = struct.pack("!i", size) if size <= 0x7FFFFFFF else struct.pack("!iQ", -1, size)
    return head + bytes(pickled)


class Exchange:
    """One under way. ``answer``: what ``Connection.recv`` returns there; EOFError or OSError where nothing comes.

    Begins at once, and leaves the connection as it was when the answer is there or after ``leave``.
    """

    def __init__(self, connection: Connection, order: bytes) -> None:
        self._loop, self._file = asyncio.get_running_loop(), -1
        self.answer: asyncio.Future[Any] = self._loop.create_future()
        self._unsent, self._come, self._wanted = memoryview(order), bytearray(), 4  # the length comes first
        self._long = self._headed = False
        try:
            self._file = connection.fileno()
            os.set_blocking(self._file, False)
            self._loop.add_reader(self._file, self._read)
        except Exception as error:  # closed, say: it belongs to who waits, as all that goes wrong later
            self._end(error)
        else:
            self._write()

    def leave(self) -> None:
        """Watch the connection no more."""
        if self._file < 0:
            return
        self._loop.remove_reader(self._file)
        self._loop.remove_writer(self._file)
        os.set_blocking(self._file, True)
        self._file = -1

    def _write(self) -> None:
        """Send what the system takes, and the rest when it takes more."""
        try:
            with contextlib.suppress(BlockingIOError):
                self._unsent = self._unsent[os.write(self._file, self._unsent) :]
            if self._unsent:
                self._loop.add_writer(self._file, self._write)
            else:
                self._loop.remove_writer(self._file)
        except Exception as error:
            self._end(error)

    def _read(self) -> None:
        """Take what has come, up to the end of the answer."""
        try:
            while len(self._come) < self._wanted:
                part = os.read(self._file, min(self._wanted - len(self._come), _READ))
                if not part:
                    raise EOFError
                self._come += part
                if len(self._come) == self._wanted and not self._headed:
                    self._head()
            content = ForkingPickler.loads(self._come)
        except BlockingIOError:
            return
        except Exception as error:  # of whatever unpickling runs, too: it belongs to who waits, not to the loop
            self._end(error)
            return
        self.leave()
        if not self.answer.done():
            self.answer.set_result(content)

    def _head(self) -> None:
        """Learn the answer's length."""
        (size,) = struct.unpack("!Q" if self._long else "!i", self._come)
        self._come, self._long = bytearray(), size < 0
        self._wanted, self._headed = (8, False) if size < 0 else (size, True)

    def _end(self, error: Exception) -> None:
        self.leave()
        if not self.answer.done():
            self.answer.set_exception(error)
