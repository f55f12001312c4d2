"""Hi-ToM (He et al. 2023, arXiv 2310.16755): where is it, where does A think it is, where does A think B thinks it is …

Prompts are those of the authors' prompt files (github.com/ying-hui-he/Hi-ToM_dataset): answer alone (VP), or answer
first and then an explanation (CoTP). Accuracy is given by order, and *jointly*: a question of order n counts where all
questions of orders 0 to n about the same story are right.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from megatron_rl.data.answers.chosen_option import chosen
from megatron_rl.data.rows import choices
from megatron_rl.data.rows.parts import texts
from megatron_rl.data.task import Example, Sample
from megatron_rl.errors import InputError
from megatron_rl.evaluation.config import SuiteConfig
from megatron_rl.evaluation.suite import Asking, Card, Item, Outcome, Suite, Values, read_rows

CARDS = {
    "hi_tom": Card(
        title="Hi-ToM",
        source="He et al. 2023, arXiv 2310.16755, github.com/ying-hui-he/Hi-ToM_dataset: 600 questions, in 2 ways",
        licence="Apache-2.0",
        protocol="the authors' prompts; accuracy by order (0 to 4) and deception, and joint accuracy: all lower orders "
        "about the story right, too; greedy",
        training="not forbidden by its authors; ToM-RL trains on generated stories of its kind",
        where="Fetch Hi-ToM_data.json of github.com/ying-hui-he/Hi-ToM_dataset and set hi_tom.path to it.",
        takes=("cot",),
    )
}
STORIES = 20  # of each length, with or without deception; sample_id counts them on and on
_ASKED = {
    False: "Read the story below and answer the multiple-choice question. Give the answer without explanations.",
    True: "Read the story below and answer the multiple-choice question. Think step-by-step. Give the answer first, "
    "and explain it then.",
}
_NOTE = (
    "Note: assume the following. (1) An agent witnesses everything and every movement before leaving a location. (2) "
    "An agent A can infer what an agent B thinks only if A and B have been in the same location, or have interacted in "
    "private or in public. (3) Every agent tends to lie. What a character tells others does not affect what he himself "
    "believes. An agent tends to trust an agent who left the room later than himself. All agents know the order of "
    "leaving. (4) Agents in private communication know that others do not hear them, but that anyone can hear any "
    "public claim."
)
_PROMPTING = {False: ("VP", "MC"), True: ("CoTP", "CoT")}  # the authors' names have changed


def extract(sample: Sample) -> str:
    """The letter of the option chosen, "" for none."""
    return chosen(sample.response, sample.extra["options"])[0]


def report(sample: Sample) -> dict[str, float]:
    """``correct``: the right option is chosen; ``format``: an option is chosen at all."""
    letter = extract(sample)
    return {"correct": float(letter == sample.answer), "format": float(bool(letter))}


def make(name: str, config: SuiteConfig, tokenizer: Any, seed: int) -> Suite:
    """The questions of one way of prompting. Raises InputError naming file, row and column."""
    ask = Asking(name, config, tokenizer)
    table = read_rows(name, CARDS[name], config)
    wanted = ("story", "question", "choices", "answer", "question_order", "deception", "story_length", "sample_id")
    cells = {column: texts(table, table.require(column, {})) for column in wanted}
    known = _PROMPTING[config.cot]
    ways = texts(table, "prompting_type") if "prompting_type" in table.cells else [known[0]] * table.length
    items = []
    for number, (way, *row) in enumerate(zip(ways, *cells.values(), strict=True), start=1):
        if way not in known:
            continue
        story, question, listing, answer, order, deception, length, sample = row
        options = choices.listed(listing).texts
        right = choices.answer_index(answer, options) if options else None
        if right is None or not order.isdecimal() or not sample.isdecimal():
            raise InputError(
                f"{table.name}, row {number}: the answer {answer!r} must be one of its choices {options}, and its "
                f"question_order ({order!r}) and sample_id ({sample!r}) whole numbers. Fetch the file again."
            )
        user = f"{_ASKED[config.cot]}\nStory:\n{_told(story)}\nQuestion: {question}\nChoices: {listing}\n\n{_NOTE}"
        told = "yes" if deception.casefold() == "true" else "no"
        groups = {"order": order, "deception": told, "length": length}
        set_of = f"{told}/{length}/{int(sample) % STORIES}"
        form = Example(str(number), ask(user), choices.LETTERS[right], "", name, {"options": options, "set": set_of})
        items.append(Item(str(number), (form,), groups))
    if not items:
        raise InputError(f"{table.name} has no rows of prompting_type {known[0]}: set {name}.cot otherwise.")
    return Suite(name, tuple(items), report, extract, joint)


def _told(story: str) -> str:
    """The story alone: in the authors' file those of VP begin with the instruction."""
    lines = story.splitlines()
    return "\n".join(line for line in lines if not line.startswith(("Read the following story", "Story:"))).strip()


def joint(outcomes: Sequence[Outcome]) -> dict[str, Values]:
    """``joint_order_n``: the share of questions of order n that are right with all lower orders of their story."""
    sets: dict[str, dict[int, list[float]]] = defaultdict(dict)
    for outcome in outcomes:
        sets[outcome.item.forms[0].extra["set"]][int(outcome.item.groups["order"])] = outcome.scores
    found: dict[str, Values] = {}
    for order in sorted({order for orders in sets.values() for order in orders}):
        complete = [orders for orders in sets.values() if all(lower in orders for lower in range(order + 1))]
        if complete:
            found[f"joint_order_{order}"] = [
                sum(map(min, zip(*(orders[lower] for lower in range(order + 1)), strict=True))) / len(orders[order])
                for orders in complete
            ]
    return found
