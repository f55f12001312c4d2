"""The pool's end of one reward worker."""

import contextlib
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from megatron_rl.data.task import Report, Sample
from megatron_rl.rewards.config import RewardsConfig
from megatron_rl.rewards.workers.worker import PREFIX

START_SECONDS = 120.0  # importing the rewards' modules, on a busy machine
SEND_SECONDS = 5  # handing a batch to a process that reads nothing; it then counts as ended or overdue
END_SECONDS = 1.0  # from closing the channel to SIGKILL
READ_BYTES = 1 << 16
STDERR = 2


class WorkerProcess:
    """A process that scores one batch at a time; a group of its own, so that what a reward starts dies with it.

    It also dies with the thread that makes this object. ``numbers`` are those of its batch's samples, ``waiting`` those
    that are not done yet, in their order, those that are under way first. ``since`` is when the pool last saw it
    advance or gave it work (``time.monotonic``).
    """

    def __init__(self, config: RewardsConfig, report: Report | None) -> None:
        self.config = config
        self.channel, theirs = socket.socketpair()
        self.channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_SECONDS, 0))
        self.results, their_results = os.pipe()
        os.set_blocking(self.results, False)
        path = os.pathsep.join(map(os.path.abspath, sys.path))
        with theirs:
            inherited = (theirs.fileno(), their_results)
            numbers = map(str, (*inherited, os.getpid()))
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "megatron_rl.rewards.workers.worker", *numbers],
                env={"OMP_NUM_THREADS": "1"} | os.environ | {"PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                stdout=STDERR,
                pass_fds=inherited,
                process_group=0,
            )
        os.close(their_results)
        self.ready = False
        self.rewarded = False  # whether rewards are wanted for its batch, or reports alone
        self.warm: set[bool] = set()  # for which of the two it has done a sample
        self.first = config.first_deadline  # seconds that its first sample may take
        self.begun = False  # it has read its batch
        self.ended = False
        self.numbers: list[int] = []
        self.waiting: list[int] = []
        self.concurrency = 0  # samples under way at once, whose deadlines it keeps itself; 0: one, whose the pool keeps
        self.since = time.monotonic()
        self.took = 0.0  # seconds from then to what was received last
        self._received = b""  # the beginning of a message
        self._send((config, report))

    def fileno(self) -> int:
        """For ``select``: readable when there is something to receive, or the worker has ended."""
        return self.channel.fileno()

    def give(
        self, numbers: list[int], samples: Sequence[Sample], rewarded: bool, first: float, concurrency: int = 0
    ) -> None:
        """Start on a batch; ``numbers`` says which of the pool's samples these are, ``rewarded`` what is wanted.

        ``first``: seconds that the worker may take for its first sample. ``concurrency``: samples that it has under
        way at once and gives up at their deadlines; 0: one after the other.
        """
        self.numbers, self.waiting, self.rewarded, self.first = numbers, list(numbers), rewarded, first
        self.concurrency = concurrency
        self.begun, self.since = False, time.monotonic()
        self._send((rewarded, samples, self._seconds()))

    def under_way(self) -> list[int]:
        """The samples that it has begun and not done; it begins them in their order."""
        return self.waiting[: max(1, self.concurrency)] if self.begun else []

    def receive(self) -> list[Any]:
        """The messages that have come in, without waiting; sets ``ended`` after the last."""
        exited = self._exited()
        with contextlib.suppress(BlockingIOError):
            self.ended = not self._bell()
        self.ended = self.ended or exited
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.results, READ_BYTES):
                self._received += data
        messages, at = [], 0
        while len(self._received) - at >= PREFIX.size:
            end = at + PREFIX.size + PREFIX.unpack_from(self._received, at)[0]
            if end > len(self._received):
                break
            messages.append(pickle.loads(self._received[at + PREFIX.size : end]))
            at = end
        self._received = self._received[at:]
        if messages:
            now = time.monotonic()
            self.took, self.since = now - self.since, now
        return messages

    def take(self, place: int) -> int:
        """The sample at a place of its batch waits no longer; returns its number."""
        number = self.numbers[place]
        self.waiting.remove(number)
        return number

    def done(self, place: int) -> tuple[int, float | None]:
        """The same of a sample that is done; also, if it was the worker's first, the seconds it took."""
        cold = self.rewarded not in self.warm
        self.warm |= {self.rewarded, False}
        return self.take(place), self.took if cold else None

    def deadline(self) -> tuple[float, str]:
        """How many seconds it may take until something comes of it, and where this limit comes from.

        One that keeps the deadlines itself has twice as long: it is stuck when it does not even say that one is late.
        """
        if not self.ready:
            return START_SECONDS, f"the {START_SECONDS:g} s that it has to start"
        seconds = self._seconds()
        return seconds * (2 if self.concurrency else 1), self.limit(seconds)

    def limit(self, seconds: float) -> str:
        """Which option says how many seconds a sample may take."""
        named = f"rewards.deadline={self.config.deadline:g} s"
        if seconds > self.config.deadline and seconds == self.config.first_deadline:
            named = f"rewards.first_deadline={seconds:g} s"
        return named

    def _seconds(self) -> float:
        later = self.config.deadline
        return later if self.rewarded in self.warm else max(self.first, later)

    def allowance(self) -> float:
        """Seconds until the worker is overdue; infinite while it has nothing to do."""
        if self.ready and not self.waiting:
            return float("inf")
        return self.since + self.deadline()[0] - time.monotonic()

    def kill(self) -> None:
        """End the process and what it started, at once; what it wrote can still be received."""
        if self.process.returncode is None:  # not waited for yet, so the number is still the worker's
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def end(self) -> None:
        """End the process: gently when it is idle, then by force."""
        if self.ready and not self.waiting:
            self.channel.settimeout(END_SECONDS)
            with contextlib.suppress(OSError):
                self.channel.shutdown(socket.SHUT_WR)
                while self.channel.recv(64):
                    pass
        self.kill()
        self.channel.close()
        os.close(self.results)

    def _exited(self) -> bool:
        """Whether the process has ended, though what it forked may hold the channel open.

        It is not reaped: until it is, no other process group can have its number.
        """
        if self.process.returncode is not None:
            return True
        return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _bell(self) -> bytes:
        try:
            return self.channel.recv(64, socket.MSG_DONTWAIT)
        except ConnectionResetError:  # it ended before it read all that it was sent
            return b""

    def _send(self, message: object) -> None:
        data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        with contextlib.suppress(OSError):  # it ended or hangs: receive() and allowance() will say so
            self.channel.sendall(data)
