"""The peer's side of ``grpo_step_vs_trl.py``: GRPO steps of TRL's GRPOTrainer, run inside TRL's own environment.

Reads a JSON object on stdin (model, prompts, group_size, new_tokens, kl_coef, steps, warmup, threads) and prints one
JSON line. TRL gets its fastest settings: one pass over all completions, no activation checkpointing, old log-probs
reused from the update itself.
"""

import json
import resource
import sys
import tempfile
import time

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl import __version__ as trl_version


class StepClock(TrainerCallback):
    """CPU and wall seconds at every step's end: differences are whole steps, generation and scoring included."""

    def __init__(self) -> None:
        self.cpu: list[float] = []
        self.wall: list[float] = []

    def on_step_end(self, *_args: object, **_kwargs: object) -> None:
        self.cpu.append(time.process_time())
        self.wall.append(time.perf_counter())


def distinct_words(completions: list[str], **_columns: object) -> list[float]:
    """Share of distinct words: trivial, and different from one random completion to the next."""
    return [len(set(words)) / max(len(words), 1) for words in (completion.split() for completion in completions)]


def main() -> None:
    job = json.load(sys.stdin)
    torch.set_num_threads(job["threads"])
    batch = len(job["prompts"]) * job["group_size"]
    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(prefix="trl-"),
        max_steps=job["warmup"] + job["steps"],
        per_device_train_batch_size=batch,
        num_generations=job["group_size"],
        max_completion_length=job["new_tokens"],
        generation_kwargs={"min_new_tokens": job["new_tokens"]},
        temperature=1.0,
        beta=job["kl_coef"],
        loss_type="grpo",
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        seed=0,
    )
    clock = StepClock()
    trainer = GRPOTrainer(
        model=job["model"],
        reward_funcs=distinct_words,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": job["prompts"]}),
        callbacks=[clock],
    )
    lengths: list[int] = []
    score = trainer._generate_and_score_completions

    def recorded(inputs: list) -> dict:
        output = score(inputs)
        lengths.append(int(output["completion_mask"].sum()))
        return output

    trainer._generate_and_score_completions = recorded
    trainer.train()
    if set(lengths) != {batch * job["new_tokens"]}:
        raise SystemExit(f"TRL generated {lengths} tokens a step instead of {batch * job['new_tokens']}")
    first = job["warmup"] - 1
    print(
        json.dumps(
            {
                "trl": trl_version,
                "torch": torch.__version__,
                "parameters": sum(p.numel() for p in trainer.model.parameters()),
                "cpu_seconds": [b - a for a, b in zip(clock.cpu[first:], clock.cpu[first + 1 :], strict=False)],
                "wall_seconds": [b - a for a, b in zip(clock.wall[first:], clock.wall[first + 1 :], strict=False)],
                "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            }
        )
    )


if __name__ == "__main__":
    main()
