"""CPU time of one GRPO step against TRL's GRPOTrainer: the same model and the same work, in one run.

    python -m benchmarks.grpo_step_vs_trl --trl-python .venv-trl/bin/python [--steps 6] [--rounds 2]

TRL gets an environment of its own, made once (without a GPU: torch==2.13.0+cpu):

    python3 -m venv .venv-trl && .venv-trl/bin/pip install torch==2.13.0 trl==1.16.0

Ours is a run of ``megatron-rl train``: one trainer rank, one engine, one reward worker and their supervisor, one
thread each; the CPU time of all of them counts. Start-up and the first steps do not count, on either side. The two
take turns, ``--rounds`` times, so that a machine that slows down slows down both.
"""

import argparse
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from megatron_rl.actor.config import ActorConfig, ModelConfig, OptimizerConfig
from megatron_rl.algorithms.config import AlgorithmConfig
from megatron_rl.config import Config, RunConfig
from megatron_rl.data.config import DataConfig
from megatron_rl.data.task import Example, Report, Sample
from megatron_rl.evaluation.config import EvaluationConfig
from megatron_rl.rewards.config import RewardsConfig
from megatron_rl.rollout.config import RolloutConfig
from megatron_rl.settings.load import to_yaml
from megatron_rl.tracking.config import TrackingConfig

PROMPTS, PROMPT_TOKENS, GROUP, NEW_TOKENS, KL, THREADS, WARMUP = 8, 54, 8, 128, 0.04, 1, 2
QWEN3_853K = {  # 853,376 parameters, the tied embedding's 65,536 included
    "model_type": "qwen3",
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
SPECIAL = ("<pad>", "<eos>")
WORDS = [f"w{i}" for i in range(QWEN3_853K["vocab_size"] - len(SPECIAL))]  # type: ignore[operator]
ROOT = Path(__file__).resolve().parent.parent
MODULE = f"benchmarks.{Path(__file__).stem}"  # under this name our processes import the task and the reward
PARTS = {"rollout.embedded": "engine", "megatron_rl.train": "rank", "rewards.workers": "reward worker"}


@dataclass
class Steps:
    """What one side used: seconds per measured step, and the memory of all its processes at their peaks."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    parts: dict[str, list[float]] = field(default_factory=dict)  # CPU seconds per kind of process


class RandomWords:
    """Prompts of random words; nothing to learn."""

    def __init__(self) -> None:
        self.train = [Example(str(i), prompt, answer=None) for i, prompt in enumerate(prompts())]
        self.heldout = self.train[:1]

    def fingerprint(self) -> str:
        """The words come from a fixed seed."""
        return "random words"

    @property
    def report(self) -> Report:
        """Called in the reward workers, which import it by name."""
        return nothing_right


def nothing_right(sample: Sample) -> dict[str, float]:
    """No answer is right."""
    return {"correct": 0.0}


def make_random_words(config: DataConfig, seed: int, tokenizer: Any) -> RandomWords:
    """The task, as ``data.task`` names it."""
    return RandomWords()


def distinct_words(sample: Sample) -> dict[str, float]:
    """Share of distinct words: trivial, and different from one random completion to the next."""
    words = sample.response.split()
    return {"score": len(set(words)) / max(len(words), 1)}


def prompts() -> list[str]:
    """The prompts of a step; every step draws all of them."""
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=PROMPT_TOKENS)) for _ in range(PROMPTS)]


def write_model(folder: Path) -> None:
    """The model with random weights and a tokenizer of whole words, as a Hugging Face folder."""
    from megatron_rl.launch.initial_model import write_random_model

    write_random_model(QWEN3_853K, "float32", 0, folder, write_tokenizer)


def write_tokenizer(folder: Path) -> None:
    """One token per word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=SPECIAL[0], eos_token=SPECIAL[1])
    wrapped.save_pretrained(folder)


def configuration(model: Path, folder: Path, name: str, steps: int) -> Config:
    """Our side. One step more than is measured: the last one also saves and exports."""
    return Config(
        run=RunConfig(name=name, folder=str(folder), steps=WARMUP + steps + 1, resume="never"),
        model=ModelConfig(path=str(model), dtype="float32"),
        data=DataConfig(task=f"{MODULE}.make_random_words", max_prompt_tokens=PROMPT_TOKENS),
        rollout=RolloutConfig(
            prompts_per_step=PROMPTS, group_size=GROUP, max_new_tokens=NEW_TOKENS, ignore_eos=True, threads=THREADS
        ),
        rewards=RewardsConfig(terms={f"{MODULE}.distinct_words": 1.0}, workers=1),
        algorithm=AlgorithmConfig(kl_coef=KL, aggregation="seq-mean-token-mean"),
        actor=ActorConfig(threads=THREADS, optimizer=OptimizerConfig(lr=1e-6)),
        evaluation=EvaluationConfig(prompts=1),
        tracking=TrackingConfig(wandb="off", tensorboard=False),
    )


def environment() -> dict[str, str]:
    """One thread for every library, and this checkout on the path."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return os.environ | {"OMP_NUM_THREADS": str(THREADS), "MKL_NUM_THREADS": str(THREADS), "PYTHONPATH": path}


def run_trl(python: str, model: Path, steps: int) -> tuple[Steps, str]:
    """TRL's steps and its version."""
    job = dict(model=str(model), prompts=prompts(), group_size=GROUP, new_tokens=NEW_TOKENS, kl_coef=KL)
    job |= dict(steps=steps, warmup=WARMUP, threads=THREADS)
    script = Path(__file__).with_name("trl_grpo_step.py")
    done = subprocess.run(
        [python, str(script)],
        input=json.dumps(job),
        capture_output=True,
        encoding="utf-8",
        env=environment(),
        cwd=model,
    )
    if done.returncode:
        raise SystemExit(f"{script.name} failed under {python}:\n{done.stderr[-3000:]}")
    result = json.loads(done.stdout.splitlines()[-1])
    return Steps(result["cpu_seconds"], result["wall_seconds"], result["peak_rss_bytes"]), result["trl"]


def run_ours(model: Path, folder: Path, name: str, steps: int) -> Steps:
    """Our steps, watched from outside: the CPU time of the whole process tree whenever a step has been recorded."""
    recipe = folder / f"{name}.yaml"
    recipe.write_text(to_yaml(configuration(model, folder, name, steps)), encoding="utf-8")
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "megatron_rl.cli", "train", str(recipe)],
            env=environment(),
            stdout=output,
            stderr=output,
        )
    metrics = folder / name / "metrics.jsonl"
    steps_seen, snapshots = 0, []
    peak = 0
    while process.poll() is None:
        done = (
            sum('"stage": "rl"' in line for line in metrics.read_text(encoding="utf-8").splitlines())
            if metrics.exists()
            else 0
        )
        if done > steps_seen:
            steps_seen = done
            if WARMUP <= done <= WARMUP + steps:
                snapshots.append((time.perf_counter(), cpu_seconds(process.pid)))
                peak = peak_bytes(process.pid)
        time.sleep(0.005)
    if process.returncode or len(snapshots) != steps + 1:
        raise SystemExit(f"our run ended with {process.returncode}:\n{log.read_text(encoding='utf-8')[-3000:]}")
    check_work([json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()])
    measured = Steps(peak_bytes=peak)
    for (before, used_before), (after, used_after) in itertools.pairwise(snapshots):
        measured.wall.append(after - before)
        measured.cpu.append(sum(used_after.values()) - sum(used_before.values()))
        for part, seconds in used_after.items():
            measured.parts.setdefault(part, []).append(seconds - used_before.get(part, 0.0))
    return measured


def tree(pid: int) -> list[psutil.Process]:
    """A process and everything below it."""
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


def cpu_seconds(pid: int) -> dict[str, float]:
    """User and system time of a process tree, by kind of process."""
    used: dict[str, float] = {}
    for process in tree(pid):
        command = " ".join(process.cmdline())
        part = next((name for pattern, name in PARTS.items() if pattern in command), "supervisor")
        times = process.cpu_times()
        used[part] = used.get(part, 0.0) + times.user + times.system
    return used


def peak_bytes(pid: int) -> int:
    """Sum of the processes' peak resident memory; pages that they share count once for each."""
    status = [Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8") for process in tree(pid)]
    return sum(int(line.split()[1]) * 1024 for text in status for line in text.splitlines() if line.startswith("VmHWM"))


def check_work(rows: list[dict[str, Any]]) -> None:
    """Every step generated and trained what it had to."""
    for row in rows:
        if row["stage"] == "rl" and row["tokens"] != PROMPTS * GROUP * NEW_TOKENS:
            raise SystemExit(f"step {row['step']} generated {row['tokens']} tokens")


def print_table(trl: Steps, ours: Steps, version: str) -> None:
    """Medians over all measured steps."""
    print("Qwen3, 853,376 parameters (hidden 128, 4 layers, MLP 384, vocabulary 512, tied), fp32, one thread a process")
    print(f"{PROMPTS} prompts x {PROMPT_TOKENS} tokens, {GROUP} completions x {NEW_TOKENS} new tokens, KL {KL}")
    print(f"{'':14}{'CPU-s/step':>11}{'least':>8}{'most':>8}{'wall s':>8}{'tokens/CPU-s':>14}{'peak memory':>13}")
    tokens = PROMPTS * GROUP * (PROMPT_TOKENS + NEW_TOKENS)
    for name, side in ((f"TRL {version}", trl), ("megatron_rl", ours)):
        cpu, wall = statistics.median(side.cpu), statistics.median(side.wall)
        numbers = f"{cpu:11.2f}{min(side.cpu):8.2f}{max(side.cpu):8.2f}{wall:8.2f}{tokens / cpu:14.0f}"
        print(f"{name:14}{numbers}{side.peak_bytes / 1e6:10.0f} MB")
    parts = ", ".join(f"{part} {statistics.median(seconds):.2f}" for part, seconds in ours.parts.items())
    print(f"megatron_rl by process, CPU-s/step: {parts}")
    print(f"TRL / megatron_rl: {statistics.median(trl.cpu) / statistics.median(ours.cpu):.2f} x CPU time a step")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python", required=True, help="python of an environment with trl==1.16.0")
    parser.add_argument("--steps", type=int, default=6, help="measured steps a round and side (default 6)")
    parser.add_argument("--rounds", type=int, default=2, help="turns that each side gets (default 2)")
    options = parser.parse_args()
    trl, ours, version = Steps(), Steps(), ""
    with tempfile.TemporaryDirectory(prefix="grpo-step-") as temporary:
        folder = Path(temporary)
        model = folder / "model"
        write_model(model)
        for turn in range(options.rounds):
            peer, version = run_trl(options.trl_python, model, options.steps)
            own = run_ours(model, folder, f"run{turn}", options.steps)
            for total, side in ((trl, peer), (ours, own)):
                total.cpu += side.cpu
                total.wall += side.wall
                total.peak_bytes = max(total.peak_bytes, side.peak_bytes)
                for part, seconds in side.parts.items():
                    total.parts.setdefault(part, []).extend(seconds)
    print_table(trl, ours, version)


if __name__ == "__main__":
    main()
