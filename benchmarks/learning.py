"""Whether every algorithm learns the quick start's task: held-out accuracy after RL, by algorithm and seed.

    python benchmarks/learning.py                            all algorithms, three seeds: about an hour on two cores
    python benchmarks/learning.py --algorithms grpo,gspo --seeds 1 --jobs 1

All runs of a seed go on from one warm start of that seed (the quick start's 600 supervised steps), so that RL alone
makes the difference. Runs are kept in --work and not made again. Prints a Markdown table, and writes all curves to
learning.json there. Exit code: 0 when every run reached --least, else 1.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean

from megatron_rl.algorithms.published import PUBLISHED

# what an algorithm is given beside its own settings and the recipe's (KL 0.04, two epochs on a rollout)
OPTIONS = {
    "dapo": ["algorithm.kl_coef=0"],
    "ppo": ["critic.optimizer.lr=1e-3", "critic.warmup_steps=4"],
}
COMMON = ["tracking.wandb=off", "run.resume=auto", "actor.tensor_parallel=1", "evaluation.greedy=true"]
BARS = "▁▂▃▄▅▆▇█"


def train(work: Path, name: str, seed: int, options: list[str]) -> Path:
    """The folder of a run, which is made unless it is complete."""
    folder = work / name
    command = [sys.executable, "-m", "megatron_rl.cli", "train", "quickstart", f"run.seed={seed}"]
    command += [f"run.folder={work}", f"run.name={name}", *COMMON, *options]
    with (work / f"{name}.log").open("w") as log:
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise SystemExit(f"{name} ended with {done.returncode}; see {work / name}.log")
    return folder


def curve(folder: Path) -> list[float]:
    """Held-out accuracy of sampled completions, evaluation after evaluation."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["sampled/correct"] for row in rows if row["stage"] == "eval"]


def drawn(values: list[float]) -> str:
    """As bars, 0 to 1."""
    return "".join(BARS[min(int(value * len(BARS)), len(BARS) - 1)] for value in values)


def main() -> int:
    """Make the runs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    of_rewards = ",".join(name for name, published in PUBLISHED.items() if "teacher" not in published.needs)
    parser.add_argument("--algorithms", default=of_rewards, help="names, separated by commas")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time, one core each")
    parser.add_argument("--least", type=float, default=0.9, help="accuracy to be reached")
    parser.add_argument("--work", type=Path, default=Path("runs/learning"), help="where runs are kept")
    parser.add_argument("more", nargs="*", help="options for every run, key=value")
    options = parser.parse_args()
    names, seeds = options.algorithms.split(","), range(options.seeds)
    options.work.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        warm = [pool.submit(train, options.work, f"warm-{seed}", seed, ["run.steps=0"]) for seed in seeds]
        starts = {seed: future.result() / "hf" for seed, future in zip(seeds, warm, strict=True)}

        def rl(name: str, seed: int) -> list[float]:
            given = [f"model.path={starts[seed]}", "model.architecture=null", "sft.steps=0", f"algorithm.name={name}"]
            given += [*OPTIONS.get(name, []), *options.more]
            return curve(train(options.work, f"{name}-{seed}", seed, given))

        made = {(name, seed): pool.submit(rl, name, seed) for name in names for seed in seeds}
        curves = {key: future.result() for key, future in made.items()}
    print("| algorithm | before | " + " | ".join(f"seed {seed}" for seed in seeds) + " | mean |")
    print("|---|" + "---|" * (len(seeds) + 2))
    for name in names:
        of_seed = [curves[name, seed] for seed in seeds]
        cells = [f"{values[-1]:.3f} {drawn(values)}" for values in of_seed]
        mean = fmean(values[-1] for values in of_seed)
        before = fmean(values[0] for values in of_seed)
        print(f"| `{name}` | {before:.3f} | {' | '.join(cells)} | {mean:.3f} |")
    found = {f"{name}-{seed}": values for (name, seed), values in curves.items()}
    (options.work / "learning.json").write_text(json.dumps(found, indent=1))
    return int(min(values[-1] for values in curves.values()) < options.least)


if __name__ == "__main__":
    sys.exit(main())
