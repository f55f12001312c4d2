"""Runs that end in every way, and what they leave: processes, shared memory, folders of sockets.

    python -m benchmarks.endings [--times 4] [--seed 0] [key=value ...]

Each way so many times, at a random moment of a small run: success; an error in a rank (a rank is killed); Ctrl-C;
SIGTERM; and a time-out (a rank that does not answer any more is ended after run.grace_seconds). Exits with 1 when
anything is left.
"""

import argparse
import contextlib
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.marked import LOOK, Marked
from benchmarks.resume import LONG, SMALL

# 0: it was complete already; less than 0: the signal came while the options were checked, when there is nothing to save
CODES = {"success": (0,), "error": (1,), "Ctrl-C": (130, 0), "SIGTERM": (143, 0, -15), "time-out": (143, 0, -15)}


def ranks(run: Marked) -> list[psutil.Process]:
    """The trainer ranks that run now."""
    found = []
    for process in run.running():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if "megatron_rl.train" in process.cmdline():
                found.append(process)
    return found


def end(run: Marked, way: str, rng: random.Random) -> None:
    """Bring a run that goes on to its end."""
    if way == "error":
        while not (some := ranks(run)) and run.wait(LOOK) is None:
            pass
        if some:
            rng.choice(some).kill()
    elif way == "Ctrl-C":
        run.process.send_signal(signal.SIGINT)
    elif way in ("SIGTERM", "time-out"):
        if way == "time-out" and (some := ranks(run)):
            rng.choice(some).suspend()
        run.process.send_signal(signal.SIGTERM)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=4, help="each way (default 4)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("overrides", nargs="*", help="key=value")
    options = parser.parse_intermixed_args()
    rng, clean, wall = random.Random(options.seed), 0, 0.0
    with tempfile.TemporaryDirectory(prefix="endings-") as temporary:
        folder = Path(temporary)
        for number in range(options.times):
            for way, codes in CODES.items():
                name = f"{way}-{number}"
                log, began = folder / f"{name}.log", time.monotonic()
                where = ["quickstart", f"run.folder={folder}", f"run.name={name}"]
                run = Marked([*where, *SMALL, "run.grace_seconds=3", *options.overrides], log)
                if way != "success":
                    run.wait(rng.uniform(0.2, 0.9) * wall)
                    end(run, way, rng)
                code = run.wait(LONG)
                wall = wall or time.monotonic() - began
                left = run.left()
                clean += not left and code in codes
                said = f"left {left}" if left else "nothing left"
                unexpected = "" if code in codes else f" (expected {codes[0]}: {log.read_text()[-500:]})"
                print(f"{way:<9} exit code {code}{unexpected}, {len(run.shared)} shared files seen: {said}", flush=True)
    total = options.times * len(CODES)
    print(f"{clean} of {total} endings left no process, no shared memory and no folder")
    sys.exit(clean < total)


if __name__ == "__main__":
    main()
