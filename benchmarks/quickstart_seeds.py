"""The quick start on several seeds: what each learns, how exactly engine and actor agree, and how long it takes.

    python -m benchmarks.quickstart_seeds [--seeds 5] [key=value ...]

Runs them one after the other, with the recipe's own settings unless overrides are given. Accuracies are shares of
the held-out stories, in percent, sampled / greedy.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

LABELS = ("correct", "false_belief_correct", "faithful")
TARGET = 0.9  # held-out accuracy, sampled
GAP = 1e-5  # nats, fp32


def run(seed: int, overrides: list[str], folder: Path) -> dict[str, Any]:
    """One quick start: its metrics by stage, and its wall time in seconds."""
    started = time.perf_counter()
    name = f"seed{seed}"
    command = [sys.executable, "-m", "megatron_rl.cli", "train", "quickstart"]
    done = subprocess.run(
        [*command, f"run.folder={folder}", f"run.name={name}", f"run.seed={seed}", "tracking.wandb=off", *overrides],
        capture_output=True,
        encoding="utf-8",
    )
    if done.returncode:
        raise SystemExit(f"seed {seed} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    rows = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    stages = {stage: [row for row in rows if row["stage"] == stage] for stage in ("eval", "sft", "rl")}
    return stages | {"wall": time.perf_counter() - started}


def accuracies(row: dict[str, float]) -> str:
    """Sampled / greedy in percent, for each label."""
    pairs = (f"{100 * row[f'sampled/{k}']:5.1f} /{100 * row[f'greedy/{k}']:6.1f}" for k in LABELS)
    return "  ".join(f"{pair:>16}" for pair in pairs)


def main() -> None:
    """The command line; exits with 1 when a seed stays below the target accuracy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="how many, from 0 (default 5)")
    parser.add_argument("overrides", nargs="*", help="key=value")
    options = parser.parse_args()
    print(f"{'seed':>4}{'':>11}" + "  ".join(f"{k.replace('_', ' '):>20}" for k in LABELS), flush=True)
    reached, gaps = 0, []
    with tempfile.TemporaryDirectory(prefix="quickstart-") as folder:
        for seed in range(options.seeds):
            result = run(seed, options.overrides, Path(folder))
            gaps += [row["max_logprob_gap"] for row in result["rl"]]
            reached += result["eval"][-1]["sampled/correct"] >= TARGET
            print(f"{seed:>4}  after SFT {accuracies(result['eval'][1])}")
            print(f"{'':>4}  after RL  {accuracies(result['eval'][-1])}   {result['wall']:.0f} s", flush=True)
    gaps.sort()
    print(f"{reached} of {options.seeds} seeds reach {100 * TARGET:.0f} % sampled")
    print(
        f"max |log-prob of the engine - of the actor| of a step: median {gaps[len(gaps) // 2]:.1e}, largest "
        f"{gaps[-1]:.1e}, above {GAP:.0e} in {sum(g > GAP for g in gaps)} of {len(gaps)} steps"
    )
    sys.exit(reached < options.seeds)


if __name__ == "__main__":
    main()
