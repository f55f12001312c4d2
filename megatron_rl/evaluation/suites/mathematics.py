"""Problems with one answer: GSM8K, MATH-500, AIME 2024 and AMC 2023, asked for a box and judged as mathematics."""

from collections.abc import Mapping
from typing import Any

from megatron_rl.data.answers.exact_answer import boxed, normalise
from megatron_rl.data.task import Example, Sample
from megatron_rl.evaluation.config import SuiteConfig
from megatron_rl.evaluation.suite import Card, Suite, read_rows
from megatron_rl.evaluation.suites.tasks import make_suite, options_of

_ZERO_SHOT = "zero-shot: step by step, the answer in \\boxed{}; equal by math-verify"
_SAMPLED = f"{_ZERO_SHOT}; small: draw 8 or more samples (samples=8 temperature=0.6) and read avg@8"
_TRAIN = "its test part is for evaluation; train on its training part"
CARDS = {
    "gsm8k": Card(
        "GSM8K",
        "Cobbe et al. 2021, arXiv 2110.14168, openai/gsm8k: 1,319 test problems",
        "MIT",
        f"{_ZERO_SHOT}; greedy",
        _TRAIN,
        "Its test.jsonl is in github.com/openai/grade-school-math; gsm8k.path takes it.",
        hub="openai/gsm8k",
        subset="main",
    ),
    "math500": Card(
        "MATH-500",
        "500 problems of MATH (Hendrycks et al. 2021, arXiv 2103.03874), chosen by Lightman et al. 2023",
        "MIT",
        f"{_ZERO_SHOT}; accuracy by level and by subject; greedy",
        "its problems are of MATH's test part: train on the 7,500 others",
        "It is HuggingFaceH4/MATH-500 on the hub; math500.path takes a local file of it.",
        hub="HuggingFaceH4/MATH-500",
    ),
    "aime24": Card(
        "AIME 2024",
        "American Invitational Mathematics Examination 2024: 30 problems",
        "Apache-2.0 (the data set), the problems are the MAA's",
        _SAMPLED,
        "for evaluation",
        "It is HuggingFaceH4/aime_2024 on the hub; aime24.path takes a local file of it.",
        hub="HuggingFaceH4/aime_2024",
        split="train",
    ),
    "amc23": Card(
        "AMC 2023",
        "American Mathematics Competitions 2023: 40 problems",
        "MIT (the data set), the problems are the MAA's",
        _SAMPLED,
        "for evaluation",
        "It is math-ai/amc23 on the hub; amc23.path takes a local file of it.",
        hub="math-ai/amc23",
    ),
}
ASKED = "Reason step by step, and put your final answer within \\boxed{{}}."  # a template's braces


def extract(sample: Sample) -> str:
    """What the last box holds, without what does not change it; "" for none."""
    return normalise(boxed(sample.response) or "")


def make(name: str, config: SuiteConfig, tokenizer: Any, seed: int) -> Suite:
    """Reads and checks every row."""
    data = options_of("math_problems", CARDS[name], config)
    columns = read_rows(name, CARDS[name], config, limit=1).columns
    data.template = f"{{{'problem' if 'problem' in columns else 'question'}}}\n{ASKED}"
    return make_suite(name, CARDS[name], data, tokenizer, seed, extract, _groups)


def _groups(example: Example) -> Mapping[str, str]:
    return {kind: str(example.extra[kind]) for kind in ("level", "subject") if example.extra.get(kind) is not None}
