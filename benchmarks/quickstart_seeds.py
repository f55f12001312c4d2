"""The quick start on several seeds: what each learns, how exactly engine and actor agree, and how long it takes.

    python -m benchmarks.quickstart_seeds [--seeds 5] [key=value ...]

Runs them one after the other, with the recipe's own settings unless overrides are given. Accuracies are shares of
the held-out stories, in percent, sampled / greedy.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.recipes import before_and_after, run

LABELS = ("correct", "false_belief_correct", "faithful")
TARGET = 0.9  # held-out accuracy, sampled
GAP = 1e-5  # nats, fp32


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
            rows, wall = run("quickstart", seed, options.overrides, Path(folder))
            gaps += [row["max_logprob_gap"] for row in rows if row["stage"] == "rl"]
            before, after = before_and_after(rows)
            reached += after["sampled/correct"] >= TARGET
            print(f"{seed:>4}  after SFT {accuracies(before)}")
            print(f"{'':>4}  after RL  {accuracies(after)}   {wall:.0f} s", flush=True)
    gaps.sort()
    print(f"{reached} of {options.seeds} seeds reach {100 * TARGET:.0f} % sampled")
    print(
        f"max |log-prob of the engine - of the actor| of a step: median {gaps[len(gaps) // 2]:.1e}, largest "
        f"{gaps[-1]:.1e}, above {GAP:.0e} in {sum(g > GAP for g in gaps)} of {len(gaps)} steps"
    )
    sys.exit(reached < options.seeds)


if __name__ == "__main__":
    main()
