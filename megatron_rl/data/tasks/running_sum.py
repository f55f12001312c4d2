"""Sums of digits modulo 10, one addition a step: a task with steps whose difficulty is known, generated.

The targets of the warm start slip now and then on purpose: each addition comes out one too high with probability
``SLIP``, and what follows goes on from there. A policy that has learned them draws a solution of n steps right with
probability (1 - SLIP)^n, below 8 % from six steps on, and (1 - SLIP)^(n - l) after the first l right steps.
"""

import random
from pathlib import Path
from typing import Any

from megatron_rl.data.answers.exact_answer import judge
from megatron_rl.data.config import DataConfig
from megatron_rl.data.task import Example, Sample
from megatron_rl.data.tasks.generated import GeneratedTask, check_prompts, choose, generate
from megatron_rl.data.tokenizer import write_word_tokenizer

TERMS = (7, 8, 9)  # digits of a sum; one step fewer
SLIP = 0.35
HELDOUT = 256
BOS, EOS, PAD = "<bos>", "<eos>", "<pad>"
LABELS = "abcdefghi"  # of the digits, by which a step says which one it adds
VOCABULARY = (PAD, BOS, EOS, "<sep>", "+", "=", ".", "<Answer>", "</Answer>", *LABELS, *map(str, range(10)))
LONGEST_PROMPT = 2 * max(TERMS) + 2  # tokens


def make_example(rng: random.Random, split: str, name: str) -> Example:
    """One sum of a split, train or heldout: the first three digits decide which."""
    while True:
        digits = [int(rng.random() * 10) for _ in range(choose(rng, TERMS))]
        if ((3 * digits[0] + 2 * digits[1] + digits[2]) % 5 == 0) == (split == "heldout"):
            break
    steps = solution(digits, [0] * (len(digits) - 1))
    slips = [int(split == "train" and rng.random() < SLIP) for _ in digits[1:]]
    return Example(
        id=name,
        prompt=f"{BOS} {' '.join(f'{a} {b}' for a, b in zip(LABELS, digits, strict=False))} <sep>",
        answer=str(sum(digits) % 10),
        target=f"{' '.join(solution(digits, slips))} {EOS}",
        data_source="running_sum",
        extra={"steps": steps, "terms": len(digits)},
    )


def solution(digits: list[int], slips: list[int]) -> list[str]:
    """The steps, of which each comes out too high by its slip; the last says the answer."""
    total, steps = digits[0], []
    for label, digit, slip in zip(LABELS[1:], digits[1:], slips, strict=False):
        before, total = total, (total + digit + slip) % 10
        steps.append(f"{label} {before} + {digit} = {total} .")
    steps[-1] += f" <Answer> {total} </Answer>"
    return steps


def report(sample: Sample) -> dict[str, float]:
    """``correct``: the answer is the sum; ``answered``: there is one."""
    correct, answered = judge(sample.response, sample.answer, "tag")
    return {"correct": float(correct), "answered": float(answered)}


def make_running_sum(config: DataConfig, seed: int, tokenizer: Any) -> GeneratedTask:
    """Sums without end for training (or the first data.limit), ``HELDOUT`` for evaluation."""
    return generate(make_example, seed, config.limit, HELDOUT, report)


def check_options(config: DataConfig) -> list[str]:
    """What is wrong with the options that this task has beside those of every task."""
    return check_prompts(config, LONGEST_PROMPT)


def write_tokenizer(folder: str | Path) -> None:
    """Write the word-level tokenizer of ``VOCABULARY`` as a Hugging Face folder."""
    write_word_tokenizer(folder, VOCABULARY, bos=BOS, eos=EOS, pad=PAD)
