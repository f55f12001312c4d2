"""FANToM (Kim et al. 2023, arXiv 2310.15421): who of a conversation knows what, some having missed a part of it.

The questions and their judgment are those of the authors' script (github.com/skywalker023/fantom, ``eval_fantom.py``)
with short conversations, for sets where somebody missed something (``inaccessible``) and the others as a control.
Belief questions are asked as choices and, with ``embedder``, freely, too: such an answer is right where a sentence
model finds it nearer to the right one than to the wrong one. ``all`` is the script's All, ``all_star`` its All*.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_rl.data.answers.chosen_option import after_thinking
from megatron_rl.data.answers.sentences import nearer
from megatron_rl.data.task import Example, Sample
from megatron_rl.errors import InputError
from megatron_rl.evaluation.config import SuiteConfig
from megatron_rl.evaluation.suite import Asking, Card, Item, Outcome, Suite, Values, read_rows

CARDS = {
    "fantom": Card(
        title="FANToM",
        source="Kim et al. 2023, arXiv 2310.15421, github.com/skywalker023/fantom",
        licence="MIT (the code); the data are for research and evaluation",
        protocol="the authors' script, short conversations: accuracy by kind of question, and set scores: all "
        "questions about a piece of information right (All); All* and free belief questions with a sentence model",
        training="forbidden: for evaluation only",
        where="Fetch https://storage.googleapis.com/ai2-mosaic-public/projects/fantom/fantom.tar.gz (sha256 "
        "1d08dfa0ea474c7f83b9bc7e3a7b466eab25194043489dd618b4c5223e1253a4) and set fantom.path to its fantom_v1.json. "
        "All* needs fantom.embedder, the folder of sentence-transformers/all-roberta-large-v1.",
        takes=("embedder",),
    )
}
FACT, CHOICE, FREE = "fact", "belief:choice", "belief:free"
LISTS, BINARIES = ("answerability:list", "access:list"), ("answerability:binary", "access:binary")
_YES = (" yes,", " yes ", " yes.", " knows ")
_NO = (" no,", " no ", " no.", " does not know ", " doesn't know ")


def extract(sample: Sample) -> str:
    """What is judged: the reply after "Answer:", where it says so."""
    text = after_thinking(sample.response)
    for mark in ("Answer:", "Choose an answer from above:"):
        if mark in text:
            return text.rpartition(mark)[2].strip()
    return text.strip()


def report(sample: Sample) -> dict[str, float]:
    """``correct``: of a question about facts the F1 of its words, else 0 or 1; ``format``: there is an answer."""
    kind, said, right = sample.extra["kind"], extract(sample), sample.answer
    if kind == FACT:
        found = word_f1(right.lower(), said.lower())
    elif kind == CHOICE:
        found = float(chooses(said, right))
    elif kind == FREE:
        found = float(nearer(said, right["right"], right["wrong"], sample.extra["embedder"]))
    elif kind in LISTS:
        found = float(lists(said, right["in"], right["out"]))
    else:
        found = float(yes_or_no(said) == right)
    return {"correct": found, "format": float(yes_or_no(said) >= 0 if kind in BINARIES else bool(said))}


def word_f1(right: str, said: str) -> float:
    """F1 of the words that two texts have in common."""
    ours, theirs = right.split(), said.split()
    same = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * same / (len(ours) + len(theirs)) if same else 0.0


def chooses(said: str, letter: str) -> bool:
    """Whether a reply chooses a, b, …: "(a)" anywhere, or a), a., a:, a, at its beginning, or a alone."""
    text = said.lower()
    return f"({letter})" in text or text == letter or text.startswith(tuple(letter + mark for mark in ").:,"))


def lists(said: str, wanted: Sequence[str], unwanted: Sequence[str]) -> bool:
    """Whether a reply names all of some and none of others."""
    text = said.lower()
    return all(name.lower() in text for name in wanted) and not any(name.lower() in text for name in unwanted)


def yes_or_no(said: str) -> int:
    """1 for yes, 0 for no, -1 for neither."""
    text = said.lower().strip("'").strip('"')
    if any(mark in text for mark in _YES) or text.startswith(("yes", "true")):
        return 1
    return 0 if any(mark in text for mark in _NO) or text.startswith(("no", "false")) else -1


def weighted_f1(said: Sequence[int], right: Sequence[int]) -> float:
    """F1 of each right answer there is, weighed by how often it is right (scikit-learn's ``average="weighted"``)."""
    total = 0.0
    for label in set(right):
        hits = sum(a == b == label for a, b in zip(said, right, strict=True))
        total += 2 * hits / (said.count(label) + right.count(label)) * right.count(label)
    return total / len(right)


def make(name: str, config: SuiteConfig, tokenizer: Any, seed: int) -> Suite:
    """Reads every set. Raises InputError naming file and row of one that is none."""
    if config.embedder and not Path(config.embedder, "config.json").is_file():
        raise InputError(f"{name}.embedder={config.embedder} is no folder of a model: it has no config.json.")
    ask = Asking(name, config, tokenizer)
    table = read_rows(name, CARDS[name], config)
    items: list[Item] = []
    for number in range(table.length):
        row = {column: table.cells[column][number] for column in table.columns}
        try:
            for place, (kind, scenario, text, answer) in enumerate(_questions(row, seed, bool(config.embedder))):
                extra = {"kind": kind, "set": str(row["set_id"]), "scenario": scenario}
                extra |= {"embedder": config.embedder} if kind == FREE else {}
                form = Example(f"{row['set_id']}/{place}", ask(text), answer, "", name, extra)
                groups = {"question": kind if kind == FACT else f"{scenario} {kind}"}
                items.append(Item(form.id, (form,), groups))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{table.name}, row {number + 1} is no set of questions ({error!r}): fetch it again."
            ) from error
    return Suite(name, tuple(items), report, extract, set_scores)


def _questions(row: Mapping[str, Any], seed: int, free: bool) -> Iterator[tuple[str, str, str, Any]]:
    """Kind, scenario, prompt and right answer of each question of a set."""
    context, fact = row["short_context"].strip(), row["factQA"]
    asked, told = fact["question"], f"{fact['question']} {fact['correct_answer']}"
    yield FACT, "", f"{context}\n\nQuestion: {asked}\nAnswer:", fact["correct_answer"]
    for place, qa in enumerate(row["beliefQAs"]):
        options = [qa["wrong_answer"], qa["correct_answer"]]
        if free:
            text = f"{context}\n\nQuestion: {qa['question']}\nAnswer:"
            yield FREE, qa["missed_info_accessibility"], text, dict(zip(("wrong", "right"), options, strict=True))
        if random.Random(f"{seed}/{row['set_id']}/{place}").random() < 0.5:
            options.reverse()
        listing = "\n".join(f"({letter}) {option}" for letter, option in zip("ab", options, strict=True))
        text = f"{context}\n\nQuestion: {qa['question']}\n{listing}\n\nChoose an answer from above:"
        yield CHOICE, qa["missed_info_accessibility"], text, "ab"[options.index(qa["correct_answer"])]
    for head, kind, listed, binary in (
        (f"Target: {asked}", "answerability", "answerabilityQA_list", "answerabilityQAs_binary"),
        (f"Information: {told}", "access", "infoAccessibilityQA_list", "infoAccessibilityQAs_binary"),
    ):
        qa = row[listed]
        text = f"{context}\n\n{head}\nQuestion: {qa['question']}\nAnswer:"
        answer = {"in": qa["correct_answer"], "out": qa["wrong_answer"]}
        yield f"{kind}:list", qa["missed_info_accessibility"], text, answer
        for qa in row[binary]:
            if qa["correct_answer"] == "no:long":  # only of the whole conversation
                continue
            text = f"{context}\n\n{head}\nQuestion: {qa['question']} Answer yes or no.\nAnswer:"
            yield f"{kind}:binary", qa["missed_info_accessibility"], text, int(qa["correct_answer"] == "yes")


def set_scores(outcomes: Sequence[Outcome]) -> dict[str, Values]:
    """``SCENARIO_all``, with free answers ``SCENARIO_all_star`` and the words that right ones share with the right one;
    the set scores of the two questions of each kind; ``SCENARIO_KIND_binary_f1``."""
    found: dict[str, Values] = {}
    for scenario in ("inaccessible", "accessible"):
        of = [o for o in outcomes if (e := o.item.forms[0].extra)["scenario"] == scenario and e["kind"] != FACT]
        free = [o for o in of if o.item.forms[0].extra["kind"] == FREE]
        kinds: dict[str, tuple[str, ...]] = {"answerability_all": ("answerability",), "access_all": ("access",)}
        kinds |= {"all": (CHOICE, "answerability", "access")} | ({"all_star": ("",)} if free else {})
        for name, heads in kinds.items():
            sets: dict[str, list[float]] = defaultdict(list)
            for outcome in of:
                extra = outcome.item.forms[0].extra
                if extra["kind"].startswith(heads):
                    sets[extra["set"]].append(min(outcome.scores))
            if sets:
                found[f"{scenario}_{name}"] = [min(scores) for scores in sets.values()]
        if hits := [o for o in free if o.scores[0]]:
            words = [word_f1(o.item.forms[0].answer["right"], o.records[0]["extracted"]) for o in hits]
            found[f"{scenario}_belief_word_f1"] = words
        for kind in BINARIES:
            asked = [o for o in of if o.item.forms[0].extra["kind"] == kind]
            if asked:
                said = [yes_or_no(o.records[0]["extracted"]) for o in asked]
                right = [o.item.forms[0].answer for o in asked]
                found[f"{scenario}_{kind.replace(':', '_')}_f1"] = weighted_f1(said, right)
    return found
