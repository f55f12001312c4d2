"""Sums of digits modulo 10, one addition a step, generated: small enough to learn on a CPU, of a known difficulty.

A completion works the sum out, one addition after the other, or it guesses. The targets of the warm start do what
data.sums says: so many of them guess, and an addition slips by one now and then. What reinforcement learning has to
find is that working it out pays, which one example can show (1-shot RLVR, arXiv 2504.20571). With ``slip`` s a solution
of n steps is drawn right with probability (1 - s)^n, and (1 - s)^(n - l) after the first l right steps, which is what
hints are for (SEELE, arXiv 2509.06923). Pairs to compare are a right solution, or step, and one that slips.
"""

import random
import re
from functools import partial
from pathlib import Path
from typing import Any

from megatron_rl.data.answers.exact_answer import judge
from megatron_rl.data.config import DataConfig
from megatron_rl.data.files import Table
from megatron_rl.data.rows.fill import filled, read_template, template_problems
from megatron_rl.data.task import Compared, Example, Sample
from megatron_rl.data.tasks.generated import GeneratedTask, check_prompts, choose, generate
from megatron_rl.data.tokenizer import write_word_tokenizer
from megatron_rl.errors import InputError

HELDOUT = 512  # held-out questions
BOS, EOS, PAD, STEPS = "<bos>", "<eos>", "<pad>", "steps:"
TEMPLATE = "{question} <sep>"
LABELS = "abcdefghi"  # of the digits, by which a step says which one it adds
PLAIN_QUESTION = ("Question:", "Answer:", "Let's", "think", "step", "by", "step.")  # words of SimpleRL-Zoo's prompt
VOCABULARY = (PAD, BOS, EOS, "<sep>", "+", "=", ".", STEPS, r"\boxed{", "}", *LABELS, *map(str, range(10)))
VOCABULARY += PLAIN_QUESTION
_RANGE = re.compile(r"([3-9])(?:-([3-9]))?")


def is_heldout(digits: list[int]) -> bool:
    """A fifth of all questions is kept for evaluation: the first three digits decide."""
    return (3 * digits[0] + 2 * digits[1] + digits[2]) % 5 == 0


def solution(digits: list[int], slips: list[int]) -> list[str]:
    """The steps, of which each comes out too high by its slip; the last says the answer."""
    total, steps = digits[0], []
    for label, digit, slip in zip(LABELS[1:], digits[1:], slips, strict=False):
        before, total = total, (total + digit + slip) % 10
        steps.append(f"{label} {before} + {digit} = {total} .")
    steps[0] = f"{STEPS} {steps[0]}"
    steps[-1] += f" {boxed(total)}"
    return steps


def boxed(number: int) -> str:
    """An answer alone."""
    return rf"\boxed{{ {number} }}"


def make_example(config: DataConfig, rng: random.Random, split: str, name: str) -> Example:
    """One sum of a split, train or heldout."""
    sums = config.sums
    while True:
        digits = [int(rng.random() * 10) for _ in range(choose(rng, _terms(sums.terms)))]
        if is_heldout(digits) == (split == "heldout"):
            break
    steps = solution(digits, [0] * (len(digits) - 1))
    slips = [int(split == "train" and rng.random() < sums.slip) for _ in digits[1:]]
    guess = split == "train" and rng.random() < sums.guess
    target = boxed(int(rng.random() * 10)) if guess else " ".join(solution(digits, slips))
    question = " ".join(f"{label} {digit}" for label, digit in zip(LABELS, digits, strict=False))
    return Example(
        id=name,
        prompt=_prompt(question, config),
        answer=str(sum(digits) % 10),
        target=f"{target} {EOS}",
        data_source="stepwise_sums",
        extra={"question": question, "steps": steps, "terms": len(digits)},
        compared=_compared(rng, digits, steps, sums.compare),
    )


def _compared(rng: random.Random, digits: list[int], steps: list[str], compare: str) -> Compared:
    """The right solution and one with a slip; or the step that slips and the right one, behind those before it."""
    at = int(rng.random() * len(steps))
    wrong = solution(digits, [int(place == at) for place in range(len(steps))])
    if compare == "solutions":
        return Compared("", " ".join(steps), " ".join(wrong))
    return Compared("".join(f"{step} " for step in steps[:at]), steps[at], wrong[at])


def report(sample: Sample) -> dict[str, float]:
    """``correct``: the last box holds the sum; ``answered``: there is one; ``worked_out``: it does not guess."""
    correct, answered = judge(sample.response, sample.answer, "boxed")
    return {"correct": float(correct), "answered": float(answered), "worked_out": float(STEPS in sample.response)}


def make_stepwise_sums(config: DataConfig, seed: int, tokenizer: Any) -> GeneratedTask:
    """Sums without end for training (or the first data.limit), ``HELDOUT`` for evaluation; needs no ``tokenizer``."""
    return generate(partial(make_example, config), seed, config.limit, HELDOUT, report)


def check_options(config: DataConfig) -> list[str]:
    """What is wrong with the options that this task has beside those of every task."""
    terms = _RANGE.fullmatch(config.sums.terms)
    if terms is None or int(terms[1]) > int(terms[2] or terms[1]):
        return [f"data.sums.terms is {config.sums.terms!r}; it must be a number from 3 to 9, or a range such as 7-9."]
    if config.template and (found := template_problems(config.template)):
        return found
    try:
        words = _prompt(" ".join(f"{label} 0" for label in LABELS[: max(_terms(config.sums.terms))]), config).split()
    except InputError as error:
        return [str(error)]
    if unknown := [word for word in words if word not in VOCABULARY]:
        return [
            f"data.template has the word {unknown[0]!r}, which the tokenizer of data.task=stepwise_sums does not know; "
            f"it can have {{question}} and {', '.join(map(repr, PLAIN_QUESTION))}."
        ]
    return check_prompts(config, len(words))


def write_tokenizer(folder: str | Path) -> None:
    """Write the word-level tokenizer of ``VOCABULARY`` as a Hugging Face folder."""
    write_word_tokenizer(folder, VOCABULARY, bos=BOS, eos=EOS, pad=PAD)


def _terms(said: str) -> range:
    match = _RANGE.fullmatch(said)
    assert match
    return range(int(match[1]), int(match[2] or match[1]) + 1)


def _prompt(question: str, config: DataConfig) -> str:
    table = Table("data.task=stepwise_sums", {"question": [question]}, 1)
    return f"{BOS} {filled(table, read_template(config.template) or TEMPLATE, config)[0]}"
