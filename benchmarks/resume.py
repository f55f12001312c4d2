"""Runs that are interrupted at random points and continued, held against one that was not.

    python -m benchmarks.resume [--points 10] [--staleness 0] [--seed 0] [key=value ...]

Each point is a run of its own, broken off once or twice after a random time, start and end included: by SIGKILL of
every process at once, or of the supervisor alone, or by SIGTERM; then it is started again until it is complete.
Compared are the metrics (without times), all completions, the weights and the examples of every step's batch. With
rollout.staleness the engine's weights differ after an interruption, and only the examples can be equal. Exits with 1
when something differs.
"""

import argparse
import hashlib
import json
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet

from benchmarks.marked import Marked

CLOCKED = ("time/", "tokens_per_second", "mfu", "timestamp", "memory/")
SMALL = [
    *("sft.steps=6", "run.steps=8", "run.save_every=2", "run.resume=auto", "tracking.rollouts=1"),
    *("rollout.prompts_per_step=4", "rollout.group_size=4", "evaluation.prompts=8", "evaluation.every=4"),
    *("tracking.wandb=off", "tracking.tensorboard=false", "algorithm.entropy_coef=0.01"),
]
KINDS = ("SIGKILL of all", "SIGKILL of the supervisor", "SIGTERM")
LONG = 3600.0  # seconds that an attempt may take


def interrupt(run: Marked, kind: str) -> None:
    """Break an attempt off, if it has not ended."""
    if run.process.poll() is not None:
        return
    if kind == "SIGTERM":
        run.process.send_signal(signal.SIGTERM)
    elif kind == "SIGKILL of the supervisor":
        run.process.kill()
    else:
        for process in run.running():
            process.kill()
    run.process.wait(LONG)


def records(folder: Path) -> dict[str, Any]:
    """What must be equal."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [{k: v for k, v in json.loads(line).items() if not k.startswith(CLOCKED)} for line in lines]
    files = sorted((folder / "rollouts").glob("step-*.parquet"))
    return {
        "metrics": rows,
        "completions": (folder / "completions.jsonl").read_bytes(),
        "weights": hashlib.sha256((folder / "hf" / "model.safetensors").read_bytes()).hexdigest(),
        "examples": [pyarrow.parquet.read_table(file, columns=["step", "id"]).to_pylist() for file in files],
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=10, help="runs that are interrupted (default 10)")
    parser.add_argument("--staleness", type=int, default=0, help="rollout.staleness (default 0)")
    parser.add_argument("--seed", type=int, default=0, help="of the points")
    parser.add_argument("overrides", nargs="*", help="key=value")
    options = parser.parse_intermixed_args()
    rng, exact = random.Random(options.seed), options.staleness == 0
    more = [f"rollout.staleness={options.staleness}"]
    equal = 0
    with tempfile.TemporaryDirectory(prefix="resume-") as temporary:
        folder = Path(temporary)
        log = folder / "log"

        def start(name: str) -> Marked:
            return Marked(
                ["quickstart", f"run.folder={folder}", f"run.name={name}", *SMALL, *more, *options.overrides], log
            )

        began = time.monotonic()
        if start("whole").wait(LONG):
            raise SystemExit(log.read_text(encoding="utf-8")[-3000:])
        wall = time.monotonic() - began
        expected = records(folder / "whole")
        print(f"uninterrupted: {wall:.0f} s", flush=True)
        for point in range(options.points):
            name = f"point{point}"
            said: list[str] = []
            left: list[str] = []
            for _ in range(rng.choice((1, 1, 2))):
                kind, after = KINDS[(point + len(said)) % len(KINDS)], rng.uniform(0.0, wall)
                run = start(name)
                ended = run.wait(after) is not None
                interrupt(run, kind)
                left += run.left() if kind == "SIGTERM" else [p for p in run.left() if p.startswith("process")]
                said.append(f"{kind} after {after:.1f} s" + (" (it had ended)" if ended else ""))
            run = start(name)
            if code := run.wait(LONG):
                raise SystemExit(f"{said}: ended with {code}\n{log.read_text(encoding='utf-8')[-3000:]}")
            found = records(folder / name)
            differing = [what for what in expected if (exact or what == "examples") and expected[what] != found[what]]
            equal += not differing and not left
            verdict = f"{', '.join(differing)} differ" if differing else "equal"
            print(f"{point:>3}  {'; '.join(said)}: {verdict}{f'; left: {left}' if left else ''}", flush=True)
    print(f"{equal} of {options.points} are equal to the uninterrupted run, and left nothing")
    sys.exit(equal < options.points)


if __name__ == "__main__":
    main()
