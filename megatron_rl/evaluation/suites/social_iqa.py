"""Social IQa (Sap et al. 2019, arXiv 1904.09728): one of three answers about a social situation."""

from typing import Any

from megatron_rl.data.answers.reasoned_choice import own_text, read
from megatron_rl.data.task import Sample
from megatron_rl.evaluation.config import SuiteConfig
from megatron_rl.evaluation.suite import Card, Suite
from megatron_rl.evaluation.suites.tasks import make_suite, options_of

CARDS = {
    "social_iqa": Card(
        title="Social IQa",
        source="Sap et al. 2019, arXiv 1904.09728, allenai/social_i_qa: 1,954 validation questions",
        licence="CC BY 4.0 (as the hub says)",
        protocol="as DeepEnlighten: its prompt, fed raw, reasoning and then <answer> (B) </answer>; template names its "
        "form for a model",
        training="its validation part is for evaluation; train on its training part",
        where="It is allenai/social_i_qa on the hub; social_iqa.path takes a local file with its columns.",
        hub="allenai/social_i_qa",
        split="validation",
        takes=("template",),
    )
}


def extract(sample: Sample) -> str:
    """The letter chosen, "" for none."""
    return read(own_text(sample.prompt, sample.response)).letter


def make(name: str, config: SuiteConfig, tokenizer: Any, seed: int) -> Suite:
    """Reads and checks every row."""
    data = options_of("social_iqa", CARDS[name], config, template=config.template, prompt="auto")
    data.chat_template_kwargs = {}
    return make_suite(name, CARDS[name], data, tokenizer, seed, extract)
