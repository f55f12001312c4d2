"""Runs that can be told from others on a machine: what they start, what they hold, and what they leave behind."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil

_MARK = "MEGATRON_RL_BENCHMARK"
_SCRATCH = b"MEGATRON_RL_SCRATCH="
_SHARED = re.compile(r"(/dev/shm/\S+)")
LOOK = 0.02  # seconds between two looks at what a run holds
PATIENCE = 60.0  # seconds in which what a run has started must be gone after it


class Marked:
    """One attempt of ``megatron-rl train``, in the background; ``log`` gets what it prints."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        self.mark = uuid.uuid4().hex
        self.shared: set[Path] = set()  # files of shared memory and folders of sockets that its processes have held
        # a shell's background job ignores Ctrl-C, and would have its children ignore it
        before = signal.signal(signal.SIGINT, signal.SIG_DFL)
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "megatron_rl.cli", "train", *arguments],
                env=os.environ | {_MARK: self.mark},
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        signal.signal(signal.SIGINT, before)

    def running(self) -> list[psutil.Process]:
        """All processes that it or what it started has started, however far removed; notes what they hold."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # of others, or gone
                environment = (path / "environ").read_bytes()
                if f"{_MARK}={self.mark}".encode() not in environment:
                    continue
                if (path / "stat").read_text().rpartition(")")[2].split()[0] == "Z":
                    continue
                found.append(int(path.name))
                self._note(path, environment)
        processes = []
        for pid in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                processes.append(psutil.Process(pid))
        return processes

    def wait(self, seconds: float) -> int | None:
        """Look at it until it has ended, for so many seconds at most; returns its exit code, None while it runs."""
        end = time.monotonic() + seconds
        while (code := self.process.poll()) is None and time.monotonic() < end:
            self.running()
            time.sleep(LOOK)
        return code

    def left(self) -> list[str]:
        """What is still there when it has ended, and some patience later."""
        end = time.monotonic() + PATIENCE
        while (still := self._left()) and time.monotonic() < end:
            time.sleep(LOOK)
        return still

    def _left(self) -> list[str]:
        alive = [f"process {process.pid}" for process in self.running() if process.pid != self.process.pid]
        return alive + [str(path) for path in sorted(self.shared) if path.exists()]

    def _note(self, path: Path, environment: bytes) -> None:
        self.shared |= {Path(name) for name in _SHARED.findall((path / "maps").read_text())}
        for entry in environment.split(b"\0"):
            if entry.startswith(_SCRATCH):
                self.shared.add(Path(os.fsdecode(entry.removeprefix(_SCRATCH))))
