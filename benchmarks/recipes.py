"""A recipe on several seeds: held-out measures after its warm start and after RL, and how long it takes.

    python -m benchmarks.recipes RECIPE [--seeds 3] [--measure partial] [key=value ...]

Runs them one after the other, with the recipe's own settings unless overrides are given. Shares in percent, sampled /
greedy, of the last evaluation before the first step of RL and of the last of all. Exits with 1 when a seed does not end
above its beginning.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def run(recipe: str, seed: int, overrides: list[str], folder: Path) -> tuple[list[dict[str, Any]], float]:
    """The rows of one run's metrics.jsonl, and its wall time in seconds."""
    started = time.perf_counter()
    name = f"seed{seed}"
    command = [sys.executable, "-m", "megatron_rl.cli", "train", recipe]
    done = subprocess.run(
        [*command, f"run.folder={folder}", f"run.name={name}", f"run.seed={seed}", "tracking.wandb=off", *overrides],
        capture_output=True,
        encoding="utf-8",
    )
    if done.returncode:
        raise SystemExit(f"seed {seed} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    rows = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return rows, time.perf_counter() - started


def before_and_after(rows: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The last evaluation before the first step of RL, and the last one."""
    first = next(i for i, row in enumerate(rows) if row["stage"] == "rl")
    evaluated = [(i, row) for i, row in enumerate(rows) if row["stage"] == "eval"]
    return [row for i, row in evaluated if i < first][-1], evaluated[-1][1]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="as `megatron-rl recipes` lists it")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 (default 3)")
    parser.add_argument("--measure", default="correct", help="of the task's report (default correct)")
    parser.add_argument("overrides", nargs="*", help="key=value")
    options = parser.parse_intermixed_args()
    above = 0
    with tempfile.TemporaryDirectory(prefix="recipes-") as folder:
        for seed in range(options.seeds):
            rows, wall = run(options.recipe, seed, options.overrides, Path(folder))
            before, after = (
                [100 * row[f"{mode}/{options.measure}"] for mode in ("sampled", "greedy")]
                for row in before_and_after(rows)
            )
            above += after[0] > before[0]
            said = "   ".join(f"{sampled:5.1f} /{greedy:6.1f}" for sampled, greedy in (before, after))
            print(f"seed {seed}   {options.measure}, before and after RL: {said}   {wall:.0f} s", flush=True)
    print(f"{above} of {options.seeds} seeds end above their beginning, sampled")
    sys.exit(above < options.seeds)


if __name__ == "__main__":
    main()
