"""Multiple-choice questions about stories, in Social-R1's form (arXiv 2603.09249): think first, then one letter.

Files have the columns ``story``, ``question`` and ``answer``, and where they have options a column ``options`` or
``choices``, or ``option_a``, ``option_b``, …; ``data_source`` and ``target`` (a completion to imitate) are optional.
Rows without options are those of ToM-RL (arXiv 2504.01698), whose answers are free text: their options are the right
answer and up to three distractors, places of the same kind from the same story first, then right answers of other
rows of the same ``data_source``. No row is left out: one that cannot be used is an error.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from string import ascii_lowercase
from typing import TYPE_CHECKING, Any

import xxhash

from megatron_rl.data import choices
from megatron_rl.data.config import DataConfig
from megatron_rl.data.files import Table, read_table
from megatron_rl.data.task import Example, Report
from megatron_rl.data.think_answer import letter_matches, parse
from megatron_rl.errors import InputError

if TYPE_CHECKING:
    from megatron_rl.rewards.sample import Sample

COLUMNS = ("story", "question", "answer", "options", "choices", "data_source", "target")
OPTION_COLUMNS = tuple(f"option_{letter}" for letter in ascii_lowercase)
INSTRUCTION = (
    "Read the story and answer the question about it by choosing one of the options. First think, then answer: work "
    "out what happened, who noticed what, and what each person knows, feels or wants. Write your reasoning between "
    "<think> and </think>, and after it only the letter of your choice between <Answer> and </Answer>."
)


def report(sample: "Sample", by_source: bool = False) -> dict[str, float]:
    """``correct``: the first answer's letter is right, in whatever format; ``format``. ``by_source``, for held-out
    files with several data sources: ``correct/NAME`` is the same for the one of this sample."""
    text, _, parts = parse(sample.prompt, sample.response)
    found = {"correct": float(letter_matches(text, sample.answer)), "format": float(parts is not None)}
    if by_source:
        found[f"correct/{sample.data_source}"] = found["correct"]
    return found


class MultipleChoice:
    """Examples whose answer is a letter."""

    def __init__(self, train: list[Example], heldout: list[Example]):
        self.train, self.heldout = train, heldout
        several = len({e.data_source for e in heldout}) > 1
        self.report: Report = partial(report, by_source=True) if several else report

    def fingerprint(self) -> str:
        """Hash of all examples as they are trained on and evaluated."""
        digest = xxhash.xxh3_128()
        for example in (*self.train, *self.heldout):
            digest.update(f"{example.id}\n{example.prompt}\n{example.target}\n{example.answer}\n".encode())
        return digest.hexdigest()


def make_multiple_choice(config: DataConfig, seed: int, tokenizer: Any) -> MultipleChoice:
    """Reads and checks every row of data.path and data.eval_path; raises InputError naming file, row and column."""
    if not config.path:
        raise InputError(f"data.path is empty; data.task={config.task} needs a file or a hub id to train on.")
    train = _load(config, config.path, config.split, "train", tokenizer)
    heldout = _load(config, config.eval_path, config.eval_split, "heldout", tokenizer) if config.eval_path else []
    return MultipleChoice(train, heldout)


def _load(config: DataConfig, path: str, split: str, part: str, tokenizer: Any) -> list[Example]:
    table = read_table(path, split, config.limit)
    template = _template(config.prompt, tokenizer)
    examples = [
        Example(
            id=f"{part}/{row}",
            prompt=template(_body(q)),
            answer=choices.LETTERS[q.right],
            target=q.target and q.target.removesuffix(tokenizer.eos_token) + tokenizer.eos_token,
            data_source=q.data_source,
            extra={"story": q.story, "question": q.question, "options": q.options},
        )
        for row, q in enumerate(_questions(table, config.columns), start=1)
    ]
    _check_lengths(table, examples, config.max_prompt_tokens, tokenizer)
    return examples


@dataclass
class _Question:
    story: str
    question: str
    answer: str  # as the file gives it
    data_source: str = ""
    target: str = ""
    options: list[str] = field(default_factory=list)
    right: int = 0  # index of the right option


def _questions(table: Table, renamed: dict[str, str]) -> list[_Question]:
    """The table's rows, with their options and the right one."""
    used = {name: table.require(name, renamed) for name in ("story", "question", "answer")}
    used |= {name: column for name in ("data_source", "target") if (column := table.find(name, renamed))}
    given = table.find("options", renamed) or table.find("choices", renamed)
    separate = [column for name in OPTION_COLUMNS if (column := table.find(name, renamed))]
    found = []
    for number, row in enumerate(table.rows, start=1):
        texts = {name: choices.text(row[column]) for name, column in used.items()}
        for name in ("story", "question", "answer"):
            if not texts[name]:
                raise InputError(
                    f"{table.name}, row {number}, column {used[name]!r}: the {name} is empty. Fill it in or remove "
                    "the row."
                )
        question = _Question(**texts)  # type: ignore[arg-type]
        if given or separate:
            question.options = choices.listed(row[given] if given else [row[c] for c in separate])
        else:
            question.question, question.options = choices.lettered(question.question)
        found.append(question)
    if not (given or separate):
        _derive_options([q for q in found if not q.options])
    columns = given or (separate[0] if separate else used["answer"]), used["answer"]
    for number, question in enumerate(found, start=1):
        question.right = _right(question, f"{table.name}, row {number}", *columns)
    return found


def _derive_options(questions: list[_Question]) -> None:
    """Gives options to questions that have none."""
    mentioned = [choices.places(q.story, q.question) for q in questions]
    kinds = [choices.kind(q.question, q.answer, m) for q, m in zip(questions, mentioned, strict=True)]
    answers: dict[tuple[str, str], set[str]] = defaultdict(set)
    for q, kind in zip(questions, kinds, strict=True):
        answers[q.data_source, kind].add(q.answer)
    pools = {key: choices.shuffled(texts, "others") for key, texts in answers.items()}
    for q, kind, (own, other, rooms) in zip(questions, kinds, mentioned, strict=True):
        near = {"container": (own, other), "room": (rooms,), "": ()}[kind]
        q.options = choices.derive(q.answer, near, pools[q.data_source, kind], f"{q.story}\n{q.question}\n{q.answer}")


def _right(question: _Question, where: str, options_column: str, answer_column: str) -> int:
    texts = question.options
    if not 2 <= len(texts) <= len(choices.LETTERS) or not all(texts):
        raise InputError(
            f"{where}, column {options_column!r}: the options are {texts}; a question needs 2 to {len(choices.LETTERS)}"
            " of them, and none may be empty. Give them in a column 'options' (a list)."
        )
    index = choices.answer_index(question.answer, texts)
    if index is None:
        raise InputError(
            f"{where}, column {answer_column!r}: the answer {question.answer!r} is not exactly one of the options "
            f"{texts}. It must be the letter or the text of one of them."
        )
    return index


def _body(question: _Question) -> str:
    listing = "\n".join(f"{letter}. {t}" for letter, t in zip(choices.LETTERS, question.options, strict=False))
    return f"{INSTRUCTION}\n\nStory: {question.story}\n\nQuestion: {question.question}\n\nOptions:\n{listing}"


def _template(form: str, tokenizer: Any) -> Callable[[str], str]:
    """How a question becomes the text that is tokenised."""
    if form == "plain" or (form == "auto" and not tokenizer.chat_template):
        begins = tokenizer.bos_token_id is not None and tokenizer("x").input_ids[0] == tokenizer.bos_token_id
        start = tokenizer.bos_token if begins else ""
        return lambda body: f"{start}{body}\n\nResponse:\n"
    if not tokenizer.chat_template:
        raise InputError(
            f"data.prompt=chat, but the tokenizer {tokenizer.name_or_path} has no chat template. Set "
            "data.prompt=plain, or use the tokenizer of a chat model."
        )

    def chat(body: str) -> str:
        message = {"role": "user", "content": body}
        return tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)

    return chat


def _check_lengths(table: Table, examples: list[Example], most: int, tokenizer: Any) -> None:
    lengths = [len(ids) for ids in tokenizer([e.prompt for e in examples], add_special_tokens=False).input_ids]
    longer = [row for row, length in enumerate(lengths, start=1) if length > most]
    if longer:
        raise InputError(
            f"{table.name}, row {longer[0]}: the prompt made from its story and question has {lengths[longer[0] - 1]} "
            f"tokens, more than data.max_prompt_tokens={most}. {len(longer)} of {len(lengths)} rows are too long, the "
            f"longest has {max(lengths)}. Shorten or remove them, or raise data.max_prompt_tokens."
        )
