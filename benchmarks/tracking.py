"""What tracking costs of a step: the rows of a run, recorded once more into an empty folder with several trackers.

    python -m benchmarks.tracking RUN [--rounds 5]

RUN is a run's folder with RL steps (a quick start's). Each step's numbers and completions are recorded as the run did,
and shown, by itself; wandb records offline, as without a key. What a step costs is the median over the rounds of the
mean over the steps, and its share is of the run's own mean `time/step`. Trackers work on in processes and threads of
their own, which is not in it, but what they take from the trainer's thread is.
"""

import argparse
import contextlib
import io
import json
import os
import tempfile
import time
from pathlib import Path
from statistics import fmean, median
from typing import Any

from megatron_rl.config import Config
from megatron_rl.tracking.config import TrackingConfig
from megatron_rl.tracking.console import RL_COLUMNS, Progress
from megatron_rl.tracking.metrics import Metrics, rows
from megatron_rl.tracking.run_folder import RunFolder

SETTINGS = {
    "files alone": {"wandb": "off", "tensorboard": False},
    "and TensorBoard": {"wandb": "off", "tensorboard": True},
    "and wandb, offline, tables every 10 steps": {"wandb": "offline", "tensorboard": True},
}


def replayed(steps: list[tuple[dict[str, float], list[dict[str, Any]]]], settings: dict[str, Any]) -> float:
    """Mean seconds of recording one step."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        metrics = Metrics(RunFolder(folder), Config(tracking=TrackingConfig(**settings)))
        shown = Progress("rl", len(steps), RL_COLUMNS, out=io.StringIO())
        began = time.perf_counter()
        for step, (numbers, completions) in enumerate(steps, 1):
            metrics.log(step, numbers)
            metrics.completions(step, completions)
            shown.step(step - 1, numbers)
        took = time.perf_counter() - began
        metrics.close()
    return took / len(steps)


def main() -> None:
    """Prints a line for each set of trackers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    os.environ.setdefault("WANDB_SILENT", "true")
    run = RunFolder(options.run)
    drawn: dict[int, list[dict[str, Any]]] = {}
    for row in rows(run.completions_file):
        if "evaluation" not in row:
            drawn.setdefault(row.pop("step"), []).append(row)
    steps = [
        ({key: value for key, value in row.items() if isinstance(value, float)}, drawn.get(row["step"], []))
        for row in rows(run.metrics_file)
        if row["stage"] == "rl"
    ]
    step = fmean(numbers["time/step"] for numbers, _ in steps)
    size = sum(len(json.dumps(some)) for _, some in steps) / len(steps) / 1000
    print(f"{len(steps)} steps of {step:.2f} s, {size:.0f} kB of completions each")
    for name, settings in SETTINGS.items():
        took = median(replayed(steps, settings) for _ in range(options.rounds))
        print(f"{name:<45}{1000 * took:8.2f} ms a step, {took / step:7.3%} of it")


if __name__ == "__main__":
    main()
