"""``megatron-rl watch``: follows a run from another shell, or from another machine that has its folder."""

import argparse
import sys
import time
from collections.abc import Callable
from typing import TextIO

from megatron_rl.analysis.follow import Followed
from megatron_rl.system.supervision.screen import Screen, duration
from megatron_rl.tracking.console import SHOWN, progress_line, titles

EPILOG = """\
examples:
  megatron-rl watch runs/latest
  megatron-rl watch runs/quickstart --once     how it stands now

It reads the run's files and writes nothing. It ends with the run, and its exit code is the run's; Ctrl-C ends it, and
leaves the run alone.
"""
EARLIER = 5  # rows of before, that are shown where there is no terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, EPILOG
    parser.add_argument("folder", metavar="RUN", help="the run's folder")
    parser.add_argument("--once", action="store_true", help="say how the run stands, and end")
    parser.add_argument("--every", type=float, default=1.0, metavar="SECONDS", help="between two looks (default 1)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Follow the run; returns its exit code, or 0 with --once. Raises InputError when the folder is no run's."""
    followed = Followed(options.folder)
    if options.once:
        end = followed.end()
        print("\n".join([followed.panel(), *([end[1]] if end else [])]))
        return 0
    return watch(followed, sys.stdout, lambda: time.sleep(max(0.05, options.every)))


def watch(followed: Followed, out: TextIO, wait: Callable[[], None]) -> int:
    """Show what comes until the run has ended: a panel on a terminal, else lines; ``wait`` between two looks."""
    show = _Panel(followed, out) if out.isatty() else _Lines(followed, out)
    while True:
        end = followed.end()  # first: rows that are written before the end are read after it
        followed.read()
        show()
        if end is not None:
            break
        wait()
    show.close()
    code, said = end
    print(said, file=out, flush=True)
    return code


class _Panel:
    def __init__(self, followed: Followed, out: TextIO) -> None:
        self.followed, self.screen = followed, Screen(out, f"watching {followed.folder.path}")

    def __call__(self) -> None:
        self.screen.show(self.followed.panel())
        self.screen.tick()

    def close(self) -> None:
        self.screen.close()
        self.screen.line(self.followed.panel())


class _Lines:
    """A line of each new row, with titles where a stage begins."""

    def __init__(self, followed: Followed, out: TextIO) -> None:
        self.followed, self.out, self.stage, self.silence = followed, out, "", ""
        self.seen = max(0, len(followed.rows) - EARLIER)

    def __call__(self) -> None:
        followed = self.followed
        if len(followed.rows) < self.seen:  # the run has been continued from before what was seen
            self.seen = 0
        for row in followed.rows[self.seen :]:
            stage = row["stage"]
            columns = SHOWN[stage][0]
            if stage != self.stage:
                self.stage = stage
                print(titles(stage, columns), file=self.out)
            left = duration(followed.left) if row is followed.rows[-1] and followed.left is not None else ""
            print(progress_line(stage, row["step"], followed.total(stage), columns, row, left), file=self.out)
        self.seen = len(followed.rows)
        silence = self.followed.silence()
        if silence and not self.silence:
            print(silence, file=self.out)
        self.silence = silence
        self.out.flush()

    def close(self) -> None: ...
