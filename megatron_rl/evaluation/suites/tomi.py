"""ToMi (Le et al. 2019): where an object is, was, will be looked for, and is thought to be looked for."""

from collections.abc import Mapping
from typing import Any

from megatron_rl.data.answers.exact_answer import given, normalise
from megatron_rl.data.task import Example, Sample
from megatron_rl.evaluation.config import SuiteConfig
from megatron_rl.evaluation.suite import Card, Suite
from megatron_rl.evaluation.suites.tasks import make_suite, options_of

CARDS = {
    "tomi": Card(
        title="ToMi",
        source="Le et al. 2019, github.com/facebookresearch/ToMi; cleaned by ToM-RL (arXiv 2504.01698): 5,994 rows",
        licence="CC BY-NC 4.0 (ToMi), MIT (ToM-RL's file)",
        protocol="zero-shot, the answer as one word in <answer> tags, compared as a text; accuracy by question_type",
        training="not forbidden by its authors; ToM-RL keeps it for evaluation",
        where="Fetch ToMi_cleaned.csv of github.com/bigai-ai/ToM-RL and set tomi.path to it.",
    )
}
_ASKED = (
    "Read the story and answer the question. Think first, and give only the place that is asked for, as the story "
    "calls it, between <answer> and </answer>.\n\nStory: {story}\n\nQuestion: {question}"
)


def extract(sample: Sample) -> str:
    """What the last tags or box hold, without what does not change it; "" for none."""
    return normalise(given(sample.response, ("tag", "boxed")) or "")


def make(name: str, config: SuiteConfig, tokenizer: Any, seed: int) -> Suite:
    """Reads and checks every row."""
    data = options_of("prompt_answer", CARDS[name], config, template=_ASKED)
    return make_suite(name, CARDS[name], data, tokenizer, seed, extract, _groups)


def _groups(example: Example) -> Mapping[str, str]:
    kind = example.extra.get("question_type")
    return {"question_type": str(kind)} if kind else {}
