"""The report of a long run: how long it takes to make, how large it is, and when a browser has painted it.

    python -m benchmarks.report [--steps 1000] [--samples 64] [--words 120] [--folder FOLDER]

A run's folder is made up: so many RL steps with the numbers of a quick start, an evaluation every hundred, and so many
completions a step of about so many words in four stages. Then `megatron-rl report` in a process of its own, and the
page in headless Chromium, opened from the disk: its first paint, and its charts. `make test-report` installs both.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from megatron_rl.settings.load import load, to_yaml

WORDS = ("she", "saw", "the box", "basket", "because", "believes", "wants", "left", "then", "looked", "says", "goal")
STAGES = ("Cue Encoding", "Cue Interpretation", "Goal Clarification", "Response Generation")
NUMBERS = (
    *("reward", "reward_std", "accuracy", "length", "truncated", "kl", "entropy", "grad_norm", "loss", "ratio"),
    *("clip_fraction", "policy_loss", "logprob_gap", "engine_kl_k3", "pass_at_k", "equal_groups", "length_max"),
    *("time/generate", "time/reward", "time/update", "time/swap", "time/step", "tokens_per_second"),
    *(f"reward/social_r1/{name}" for name in ("score", "fmt", "em", "structure", "content", "length")),
)


def text(draw: random.Random, words: int) -> str:
    """A completion in the form of Social-R1."""
    stages = (f"{stage}: {' '.join(draw.choices(WORDS, k=words // 4))}." for stage in STAGES)
    return f"<think>{' '.join(stages)}</think> <Answer> {draw.choice('ABCD')} </Answer>"


def make(folder: Path, steps: int, samples: int, words: int) -> None:
    """A folder as a run leaves it."""
    draw = random.Random(0)
    folder.mkdir(parents=True)
    config, _ = load("quickstart", [f"run.steps={steps}", "rewards.terms={answer_in_format: null, social_r1: 1}"])
    (folder / "config.yaml").write_text(to_yaml(config))
    (folder / "manifest.json").write_text(json.dumps({"attempts": [{"gpus": 0}], "plan_hash": "0" * 32}))
    with (folder / "metrics.jsonl").open("w") as metrics, (folder / "completions.jsonl").open("w") as completions:
        for step in range(1, steps + 1):
            row = {"stage": "rl", "step": step, "swap_bytes": 1e6} | {name: draw.random() for name in NUMBERS}
            metrics.write(json.dumps(row) + "\n")
            if step % 100 == 0:
                metrics.write(json.dumps({"stage": "eval", "step": step, "sampled/correct": draw.random()}) + "\n")
            for number in range(samples):
                completion = {
                    "step": step,
                    "id": f"train/{draw.randrange(10**6)}",
                    "data_source": draw.choice(("social_iqa", "tombench")),
                    "prompt": f"{' '.join(draw.choices(WORDS, k=60))}? (A) (B) (C) (D)",
                    "response": text(draw, words),
                    "answer": "A",
                    "reward": draw.random(),
                    "components": {f"social_r1/{name}": draw.random() for name in ("score", "fmt", "em", "structure")},
                    "report": {"correct": float(draw.random() < step / steps)},
                    "advantage": draw.gauss(0, 1),
                    "finish_reason": "stop",
                    "tokens": words + number % 7,
                    "extra": {"order": number % 4},
                }
                completions.write(json.dumps(completion) + "\n")


def painted(page: Path) -> dict[str, float]:
    """Seconds until the first contentful paint, and until the first charts are drawn, of the page in a new browser."""
    from playwright.sync_api import sync_playwright

    found = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1280, "height": 900})
        tab.goto(page.as_uri(), wait_until="commit")
        tab.locator("#overview .plot svg.main-svg").first.wait_for(timeout=120_000)
        drawn = tab.evaluate("performance.now()") / 1000
        tab.wait_for_load_state()
        first = tab.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime") / 1000
        tab.locator("#tab-samples").click()
        began = time.monotonic()
        tab.locator("#samples .sample").first.wait_for(timeout=120_000)
        samples = time.monotonic() - began
        browser.close()
    return {"first paint": first, "first chart": drawn, "samples unpacked": samples}


def main() -> None:
    """Makes the run, its report, and opens it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=64, help="completions of a step")
    parser.add_argument("--words", type=int, default=120, help="of a completion")
    parser.add_argument("--folder", help="where the run is made, and stays; it must not exist")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        run = Path(options.folder or temporary) / "long"
        make(run, options.steps, options.samples, options.words)
        size = (run / "completions.jsonl").stat().st_size / 1e6
        print(f"{options.steps:,} steps, {options.steps * options.samples:,} completions, {size:.0f} MB of them")
        started = time.monotonic()
        subprocess.run([sys.executable, "-m", "megatron_rl.cli", "report", str(run)], check=True)
        print(f"report: {time.monotonic() - started:.1f} s, {(run / 'report.html').stat().st_size / 1e6:.1f} MB")
        for what, seconds in painted(run / "report.html").items():
            print(f"{what}: {seconds:.2f} s")


if __name__ == "__main__":
    main()
