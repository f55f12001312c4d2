"""What a command that takes long says meanwhile, on stderr: a bar on a terminal, elsewhere a line now and then."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

FIRST, EVERY = 1.5, 10.0  # seconds until the first word, and between two lines where there is no terminal


class Work:
    """So much is done; called, from any thread, with how much more is. ``total`` 0: nobody knows how much there is.

    ``under_way`` tells how much more is known to be done, before the call that says so.
    """

    def __init__(self, what: str, unit: str, total: int) -> None:
        self.what, self.unit, self.total, self.done = what, unit, total, 0
        self.under_way: Callable[[], int] = lambda: 0
        self._furthest = 0
        self._lock = threading.Lock()

    def __call__(self, more: int) -> None:
        with self._lock:
            self.done += more

    def reached(self) -> int:
        """What is done, and under way; it never goes back."""
        self._furthest = max(self._furthest, self.done + self.under_way())
        return self._furthest

    def __str__(self) -> str:
        if not self.unit:
            return self.what
        scale, unit = (1e6, "MB") if self.unit == "bytes" else (1, self.unit)
        of = f" of {self.total / scale:,.0f}" if self.total else ""
        return f"{self.what}: {self.reached() / scale:,.0f}{of} {unit}"


@contextmanager
def working(what: str, unit: str = "", total: int = 0) -> Iterator[Work]:
    """While the work goes on inside, say from time to time how far it is; nothing when it is done at once."""
    work, ended, stream = Work(what, unit, total), threading.Event(), sys.stderr
    if stream is None:  # closed
        yield work
        return
    watch = threading.Thread(target=_bar if stream.isatty() else _lines, args=(work, ended, stream), daemon=True)
    watch.start()
    try:
        yield work
    finally:
        ended.set()
        watch.join()


def _lines(work: Work, ended: threading.Event, stream: TextIO) -> None:
    started, wait = time.monotonic(), FIRST
    while not ended.wait(wait):
        print(f"{work}, {time.monotonic() - started:.0f} s", file=stream, flush=True)
        wait = EVERY


def _bar(work: Work, ended: threading.Event, stream: TextIO) -> None:
    if ended.wait(FIRST):
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns: list[ProgressColumn] = [TextColumn(work.what), BarColumn()]
    if work.unit:
        columns += [DownloadColumn(), TransferSpeedColumn()] if work.unit == "bytes" else [MofNCompleteColumn()]
    columns.append(TimeRemainingColumn() if work.total else TimeElapsedColumn())
    with Progress(*columns, console=Console(file=stream), transient=True) as bar:
        task = bar.add_task(work.what, total=work.total or None)
        while not ended.wait(0.1):
            bar.update(task, completed=work.reached())
