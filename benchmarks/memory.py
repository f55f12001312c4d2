"""Resident memory of every process of a run, over its RL steps: nothing may grow.

    python -m benchmarks.memory [--steps 200] [key=value ...]

Runs the quick start's RL stage with a short warm start, so that the policy's completions keep their lengths, and reads
each process's resident set (shared pages included) whenever a step has been recorded.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

NAMES = {
    "rollout.embedded.process": "engine",
    "megatron_rl.train": "trainer rank",
    "rewards.worker": "reward worker",
    "megatron_rl.cli": "supervisor",
}
TABLE_AT = (0.05, 0.25, 0.5, 0.75, 0.95)  # of the steps: while every process is still there


def resident(pid: int) -> dict[tuple[str, int], float]:
    """MB of every process of the tree, by (kind, pid)."""
    root, found = psutil.Process(pid), {}
    for process in [root, *root.children(recursive=True)]:
        try:
            command = " ".join(process.cmdline())
            kind = next((name for part, name in NAMES.items() if part in command), "helper of a rank")
            found[kind, process.pid] = process.memory_info().rss / 1e6
        except psutil.NoSuchProcess:
            continue
    return found


def main() -> None:
    """Print one line per process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help="RL steps (default 200)")
    parser.add_argument("overrides", nargs="*", help="key=value")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="memory-") as folder:
        settings = [f"run.folder={folder}", f"run.steps={options.steps}", "sft.steps=60", "evaluation.every=0"]
        settings += ["rollout.prompts_per_step=8", "run.save_every=50", "tracking.wandb=off", *options.overrides]
        with Path(folder, "log").open("w", encoding="utf-8") as log:
            command = [sys.executable, "-m", "megatron_rl.cli", "train", "quickstart", *settings]
            process = subprocess.Popen(command, stdout=log, stderr=log)
        metrics, samples = Path(folder, "quickstart/metrics.jsonl"), {}
        while process.poll() is None:
            lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else []
            steps = [json.loads(line)["step"] for line in lines if '"stage": "rl"' in line]
            if steps and steps[-1] not in samples:
                samples[steps[-1]] = resident(process.pid)
            time.sleep(0.05)
        if process.returncode:
            raise SystemExit(Path(folder, "log").read_text(encoding="utf-8")[-2000:])
    shown = [min(samples, key=lambda s: abs(s - share * options.steps)) for share in TABLE_AT]
    print(f"{'MB resident after step':<24}" + "".join(f"{step:>8}" for step in shown) + "   growth")
    for key in sorted(set.intersection(*(set(samples[step]) for step in shown))):
        sizes = [samples[step][key] for step in shown]
        print(
            f"{key[0]:<24}" + "".join(f"{size:8.1f}" for size in sizes) + f"{100 * (sizes[-1] / sizes[0] - 1):8.1f} %"
        )


if __name__ == "__main__":
    main()
