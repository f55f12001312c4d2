"""Temporal Clue: deduction puzzles with one solution, of a file or generated."""

from collections.abc import Sequence
from typing import Any

from megatron_rl.data.answers.lettered import given
from megatron_rl.data.task import Sample
from megatron_rl.evaluation.config import SuiteConfig
from megatron_rl.evaluation.suite import Card, Outcome, Suite, Values
from megatron_rl.evaluation.suites.tasks import make_suite, options_of

CARDS = {
    "temporal_clue": Card(
        title="Temporal Clue",
        source="OpenPipe, github.com/bradhilton/temporal-clue; or generated here: 256 puzzles",
        licence="MIT (OpenPipe's), Apache-2.0 (generated)",
        protocol="accuracy: all answers of a puzzle are right; partial: the share of its answers (OpenPipe's score); "
        "greedy",
        training="the test file is for evaluation; generate puzzles to train on",
        where="temporal_clue.path takes a file of puzzles, as OpenPipe's test.json; without it they are generated.",
    )
}


def extract(sample: Sample) -> str:
    """The answers of a completion, "A. x; B. y; …"; "" for none."""
    return "; ".join(f"{letter}. {text}" for letter, text in given(sample.response, sample.answer).items())


def make(name: str, config: SuiteConfig, tokenizer: Any, seed: int) -> Suite:
    """Puzzles of the file, or held-out ones of a seed."""
    data = options_of("temporal_clue", CARDS[name], config)
    return make_suite(name, CARDS[name], data, tokenizer, seed, extract, measures=partial)


def partial(outcomes: Sequence[Outcome]) -> dict[str, Values]:
    """``partial``: the mean share of the answers that are right."""
    each = [[r["report"].get("partial", 0.0) for r in outcome.records] for outcome in outcomes]
    return {"partial": [sum(shares) / len(shares) for shares in each]}
