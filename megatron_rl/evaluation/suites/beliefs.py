"""Generated stories about beliefs: Sally-Anne (the quick start's task), and beliefs about beliefs by order."""

from collections.abc import Mapping
from typing import Any

from megatron_rl.data.answers.think_answer import normalise, parse
from megatron_rl.data.task import Example, Sample
from megatron_rl.evaluation.config import SuiteConfig
from megatron_rl.evaluation.suite import Card, Suite
from megatron_rl.evaluation.suites.tasks import make_suite, options_of

_TRAINING = "held-out stories: those that are trained on have other agents, objects and places"
CARDS = {
    "false_belief": Card(
        title="False belief",
        source="generated, as the quick start's task: 512 held-out stories",
        licence="Apache-2.0, as this project",
        protocol="short words of the task's own tokenizer, fed raw; by whether the belief is false; greedy",
        training=_TRAINING,
        where="",
        max_new_tokens=64,
    ),
    "higher_order_belief": Card(
        title="Higher-order belief",
        source="generated in the manner of Hi-ToM: 500 held-out stories",
        licence="Apache-2.0, as this project",
        protocol="short words of the task's own tokenizer, fed raw; accuracy by order (0 to 4) and deception; greedy",
        training=_TRAINING,
        where="",
        max_new_tokens=64,
    ),
}


def extract(sample: Sample) -> str:
    """The answer of a completion that has the form, "" for none."""
    parts = parse(sample.prompt, sample.response).parts
    return normalise(parts.answer) if parts else ""


def make(name: str, config: SuiteConfig, tokenizer: Any, seed: int) -> Suite:
    """The held-out stories of a seed."""
    return make_suite(name, CARDS[name], options_of(name, CARDS[name], config), tokenizer, seed, extract, _groups)


def _groups(example: Example) -> Mapping[str, str]:
    if "order" in example.extra:
        return {"order": str(example.extra["order"]), "deception": "yes" if example.extra["deception"] else "no"}
    return {"belief": "false" if example.extra["false_belief"] else "true"}
