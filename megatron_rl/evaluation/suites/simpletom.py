"""SimpleToM (Gu et al. 2024, arXiv 2410.13648): what somebody is aware of, will do, and whether that is reasonable."""

from dataclasses import replace
from typing import Any

from megatron_rl.data.answers.chosen_option import chosen
from megatron_rl.data.rows import choices
from megatron_rl.data.rows.parts import texts
from megatron_rl.data.task import Example, Sample
from megatron_rl.errors import InputError
from megatron_rl.evaluation.config import SuiteConfig
from megatron_rl.evaluation.suite import Asking, Card, Item, Suite, read_files, read_rows

CARDS = {
    "simpletom": Card(
        title="SimpleToM",
        source="Gu et al. 2024, arXiv 2410.13648, allenai/SimpleToM: 1,147 stories, three questions each",
        licence="CC BY 4.0 (as the hub says)",
        protocol="zero-shot, two options, the letter as [[A]]; accuracy by kind of question: mental state, behaviour, "
        "judgment; greedy",
        training="for evaluation only, as its authors mean it",
        where="It is allenai/SimpleToM on the hub; simpletom.path takes a folder with mental-state-qa.jsonl, "
        "behavior-qa.jsonl and judgment-qa.jsonl.",
        hub="allenai/SimpleToM",
    )
}
KINDS = ("mental-state-qa", "behavior-qa", "judgment-qa")
_ASKED = (
    "Read the story and answer the question by choosing one of the options. End your reply with the letter of your "
    "choice in the form [[A]].\n\nStory: {story}\n\nQuestion: {question}\n\nOptions:\n{options}"
)


def extract(sample: Sample) -> str:
    """The letter of the option chosen, "" for none."""
    return chosen(sample.response, sample.extra["options"])[0]


def report(sample: Sample) -> dict[str, float]:
    """``correct``: the right option is chosen; ``format``: in a form of its own, such as [[A]]."""
    letter, formed = chosen(sample.response, sample.extra["options"])
    return {"correct": float(letter == sample.answer), "format": float(formed)}


def make(name: str, config: SuiteConfig, tokenizer: Any, seed: int) -> Suite:
    """The three kinds of questions, or the one that a file holds. Raises InputError naming file, row and column."""
    ask, card = Asking(name, config, tokenizer), CARDS[name]
    if config.path:
        tables = read_files(name, card, config, KINDS)
    else:
        subsets = [config.subset] if config.subset else KINDS
        tables = {kind: read_rows(name, card, replace(config, subset=kind)) for kind in subsets}
    items = []
    for kind, table in tables.items():
        cells = [texts(table, table.require(column, {})) for column in ("story", "question", "answerKey")]
        for number, (story, question, answer, listing) in enumerate(
            zip(*cells, table.column(table.require("choices", {})), strict=True), start=1
        ):
            options, labels = choices.listed(listing)
            right = choices.answer_index(answer, options, labels)
            if right is None:
                raise InputError(f"{table.name}, row {number}: the answer {answer!r} is none of {labels or options}.")
            lines = "\n".join(f"{letter}. {o}" for letter, o in zip(choices.LETTERS, options, strict=False))
            prompt = ask(_ASKED.format(story=story, question=question, options=lines))
            form = Example(f"{kind}/{number}", prompt, choices.LETTERS[right], "", name, {"options": options})
            items.append(Item(form.id, (form,), {"kind": kind.removesuffix("-qa")}))
    return Suite(name, tuple(items), report, extract)
