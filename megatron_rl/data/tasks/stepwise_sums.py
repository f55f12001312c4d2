"""Sums of three digits, generated: small enough to learn on a CPU, and with two ways to answer.

A completion works the sum out, one addition after the other, or it guesses. The targets of the warm start do both, and
most of them guess. What reinforcement learning has to find is that working it out pays, which one example can show
(1-shot RLVR, arXiv 2504.20571).
"""

import random
from pathlib import Path
from typing import Any

from megatron_rl.data.config import DataConfig
from megatron_rl.data.task import Example, Sample
from megatron_rl.data.tasks import prompt_answer
from megatron_rl.data.tasks.generated import GeneratedTask, check_prompts, choose, generate, weighted
from megatron_rl.data.tokenizer import write_word_tokenizer

TERMS = 3
LARGEST = 9 * TERMS
GUESSES = 0.6  # targets that guess
SPREAD = 5  # a guess lies at most so far from the sum
HELDOUT = 512  # held-out questions
LONGEST_PROMPT = 2 * TERMS + 1  # tokens
LONGEST_COMPLETION = 6 * (TERMS - 1) + 5  # tokens
BOS, EOS, PAD, STEPS = "<bos>", "<eos>", "<pad>", "steps:"
VOCABULARY = (PAD, BOS, EOS, "+", "=", ",", STEPS, r"\boxed{", "}", *map(str, range(LARGEST + 1)))


def is_heldout(terms: list[int]) -> bool:
    """A fifth of all questions is kept for evaluation."""
    return sum(place * term for place, term in enumerate(terms, start=1)) % 5 == 0


def worked_out(terms: list[int]) -> str:
    """The additions, one after the other, and the sum."""
    steps, so_far = [], terms[0]
    for term in terms[1:]:
        steps.append(f"{so_far} + {term} = {so_far + term} ,")
        so_far += term
    return " ".join([STEPS, *steps, boxed(so_far)])


def boxed(number: int) -> str:
    """An answer alone."""
    return rf"\boxed{{ {number} }}"


def make_example(rng: random.Random, split: str, name: str) -> Example:
    """One question of a split, train or heldout."""
    while True:
        terms = [1 + int(rng.random() * 9) for _ in range(TERMS)]
        if is_heldout(terms) == (split == "heldout"):
            break
    near = [n for n in range(sum(terms) - SPREAD, sum(terms) + SPREAD + 1) if 0 <= n <= LARGEST]
    way = weighted(rng, {"guess": GUESSES, "work": 1 - GUESSES}) if split == "train" else "work"
    target = boxed(choose(rng, near)) if way == "guess" else worked_out(terms)
    return Example(
        id=name,
        prompt=f"{BOS} {' + '.join(map(str, terms))} =",
        answer=str(sum(terms)),
        target=f"{target} {EOS}",
        data_source="stepwise_sums",
    )


def report(sample: Sample) -> dict[str, float]:
    """``correct`` and ``answered``, as of every question with an answer; ``worked_out``: it does not guess."""
    return prompt_answer.report(sample) | {"worked_out": float(STEPS in sample.response)}


def stepwise_sums(seed: int, limit: int = 0) -> GeneratedTask:
    """Sums without end for training (or the first ``limit``), ``HELDOUT`` for evaluation."""
    return generate(make_example, seed, limit, HELDOUT, report)


def make_stepwise_sums(config: DataConfig, seed: int, tokenizer: Any) -> GeneratedTask:
    """The task of one_shot.tiny; ``tokenizer`` is not needed, prompts have ``LONGEST_PROMPT`` tokens."""
    return stepwise_sums(seed, config.limit)


def check_options(config: DataConfig) -> list[str]:
    """What is wrong with the options that this task has beside those of every task."""
    return check_prompts(config, LONGEST_PROMPT)


def write_tokenizer(folder: str | Path) -> None:
    """Write the word-level tokenizer of ``VOCABULARY`` as a Hugging Face folder."""
    write_word_tokenizer(folder, VOCABULARY, bos=BOS, eos=EOS, pad=PAD)
