"""Questions of reasoning-gym (github.com/open-thought/reasoning-gym), judged by its own verifiers.

``data.task=reasoning_gym:NAME`` names one of its generators, ``data.gym`` holds that one's options.
"""

import json
from collections.abc import Iterator
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from megatron_rl.data.answers.exact_answer import given
from megatron_rl.data.answers.think_answer import parse
from megatron_rl.data.config import DataConfig
from megatron_rl.data.rows.template import make_template
from megatron_rl.data.task import UNBOUNDED, Example, Examples, Sample
from megatron_rl.data.tasks.generated import GeneratedTask
from megatron_rl.errors import InputError
from megatron_rl.system.named import told

INSTRUCTION = "Think step by step. Then give the answer alone between <answer> and </answer>."
HELDOUT = 256  # the first questions of a generator; those behind them are trained on
LAST = 2**31  # generators add a question's number to the seed, and some take seeds below 2^32 only


class Questions(Examples):
    """Questions of a generator, from one number on, and over again after ``LAST``."""

    def __init__(self, dataset: Any, form: Any, config: DataConfig, split: str, first: int, length: int) -> None:
        self.dataset, self.form, self.split, self.first, self.length = dataset, form, split, first, length
        self.name, self.options = config.task.partition(":")[2], json.dumps(config.gym, sort_keys=True)

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(self.length))

    def example(self, index: int) -> Example:
        """As ``Examples.example``."""
        entry = self.dataset[self.first + index % (LAST - self.first)]
        return Example(
            id=f"{self.split}/{index}",
            prompt=self.form([{"role": "user", "content": f"{entry['question']}\n\n{INSTRUCTION}"}]),
            answer=entry["answer"],
            data_source=f"reasoning_gym/{self.name}",
            extra={"generator": self.name, "options": self.options, "entry": dict(entry)},
        )


def make_reasoning_gym(config: DataConfig, seed: int, tokenizer: Any) -> GeneratedTask:
    """Questions without end for training (or the first ``data.limit``), ``HELDOUT`` for evaluation.

    Raises InputError where the package is missing, for a generator that it does not have, and for wrong options.
    """
    name = config.task.partition(":")[2]
    dataset = _create(name, config.gym, seed)
    form = make_template(config, tokenizer)
    train = Questions(dataset, form, config, "train", HELDOUT, config.limit or UNBOUNDED)
    return GeneratedTask(train, Questions(dataset, form, config, "heldout", 0, HELDOUT), report)


def check_options(config: DataConfig) -> list[str]:
    """What is wrong with the name of the generator and its options."""
    try:
        _create(config.task.partition(":")[2], config.gym, 0)
    except InputError as error:
        return [str(error)]
    return []


def report(sample: Sample) -> dict[str, float]:
    """``correct``: the verifier gives the full score; ``partial``: its score; ``answered``: there is an answer."""
    score, answered = judge(sample)
    return {"correct": float(score >= 1), "partial": score, "answered": float(answered)}


def judge(sample: Sample) -> tuple[float, bool]:
    """The verifier's score of the answer in the last <answer> or \\boxed{} after the thinking; whether one is there.

    0 without an answer, and for one that the verifier cannot read, on which some of them raise.
    """
    try:
        name, options, entry = (sample.extra[key] for key in ("generator", "options", "entry"))
    except KeyError as error:
        raise InputError(
            f"The example has no {error} among its columns: reasoning_gym judges answers to its own questions "
            "(data.task=reasoning_gym:NAME)."
        ) from error
    answer = given(parse(sample.prompt, sample.response).text, ("tag", "boxed"))
    if answer is None:
        return 0.0, False
    verifier = _verifier(name, options)
    try:
        return float(verifier.score_answer(answer=answer, entry=entry)), True
    except Exception:
        return 0.0, True


@lru_cache(maxsize=64)
def _verifier(name: str, options: str) -> Any:
    return _create(name, json.loads(options), 0)


def _create(name: str, options: dict[str, Any], seed: int) -> Any:
    """A generator with its options. Raises InputError."""
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise InputError(
            f"data.task=reasoning_gym:{name} needs reasoning-gym, which cannot be imported ({error}): "
            "pip install megatron-rl[gym]."
        ) from error
    if name not in DATASETS:
        near = get_close_matches(name, DATASETS, n=5, cutoff=0.4) or sorted(DATASETS)[:5]
        raise InputError(
            f"data.task=reasoning_gym:{name}: reasoning-gym has no such generator among its {len(DATASETS)}; the "
            f"nearest are {', '.join(near)}."
        )
    if own := sorted({"seed", "size"} & set(options)):
        raise InputError(f"data.gym.{own[0]}: the run decides this (run.seed, data.limit); take it away.")
    try:
        return reasoning_gym.create_dataset(name, seed=seed, size=LAST, **options)
    except Exception as error:  # each generator checks its own options in its own way
        raise InputError(f"data.gym={options} does not suit reasoning_gym:{name}: {told(error)}.") from error
