"""Multiple-choice questions about stories, in Social-R1's form (arXiv 2603.09249): think first, then one letter.

Files have the columns ``story``, ``question`` and ``answer``, and where they have options a column ``options`` or
``choices``, or ``option_a``, ``option_b``, …; ``data_source`` and ``target`` (a completion to imitate) are optional.
The rows of ToM-RL (arXiv 2504.01698) have free-text answers and no options: theirs are derived, the right answer and up
to three distractors, places of the same kind from the same story first, then right answers of other rows of the same
``data_source``. For rows of other sources data.derive_options asks for it. A row that cannot be used is an error.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from string import ascii_lowercase
from typing import Any

from megatron_rl.data.answers.think_answer import letter_matches, parse
from megatron_rl.data.config import DataConfig
from megatron_rl.data.files import Table
from megatron_rl.data.rows import choices
from megatron_rl.data.rows.parts import Part, Rows, load_parts, texts
from megatron_rl.data.rows.template import make_template
from megatron_rl.data.task import Example, Sample
from megatron_rl.data.tokenizer import ended
from megatron_rl.errors import InputError

OPTION_COLUMNS = tuple(f"option_{letter}" for letter in ascii_lowercase)
COLUMNS = ("story", "question", "answer", "options", "choices", "data_source", "target", *OPTION_COLUMNS)
INSTRUCTION = (
    "Read the story and answer the question about it by choosing one of the options. First think, then answer: work "
    "out what happened, who noticed what, and what each person knows, feels or wants. Write your reasoning between "
    "<think> and </think>, and after it only the letter of your choice between <Answer> and </Answer>."
)


def report(sample: Sample, by_source: bool = False) -> dict[str, float]:
    """``correct``: the first capital letter that opens an ``<Answer>`` is right, also where the rest of the form is not
    kept; ``format``: all of it is. ``by_source``, for held-out files with several data sources: ``correct/NAME`` is
    ``correct`` for the one of this sample."""
    text, _, parts = parse(sample.prompt, sample.response)
    found = {"correct": float(letter_matches(text, sample.answer)), "format": float(parts is not None)}
    if by_source:
        found[f"correct/{sample.data_source}"] = found["correct"]
    return found


def make_multiple_choice(config: DataConfig, seed: int, tokenizer: Any) -> Rows:
    """Reads and checks every row of data.path and data.eval_path; raises InputError naming file, row and column."""
    template = make_template(config, tokenizer)

    def make(table: Table, part: str) -> Part:
        questions, derived = _questions(table, config)
        beside = _beside(table, config) if part == "train" else [{}] * table.length
        examples = []
        for row, q in enumerate(questions, start=1):
            try:
                prompt = template([{"role": "user", "content": _body(q)}])
            except ValueError as error:
                raise InputError(f"{table.name}, row {row}: the prompt cannot be used: {error}.") from error
            examples.append(
                Example(
                    id=f"{part}/{row}",
                    prompt=prompt,
                    answer=choices.LETTERS[q.right],
                    target=ended(q.target, tokenizer),
                    data_source=q.data_source,
                    extra={**beside[row - 1], "story": q.story, "question": q.question, "options": q.options},
                )
            )
        return Part(examples, {"whose options are derived from other rows": derived})

    return Rows(*load_parts(config, tokenizer, make), report)


def check_options(config: DataConfig) -> list[str]:
    """What is wrong with the options that this task has beside those of every task."""
    found = []
    if config.prompt == "raw":
        found.append(
            "data.prompt=raw feeds a prompt of the file as it is, and data.task=multiple_choice makes its own: use "
            "auto, chat or plain, or data.task=prompt_answer."
        )
    if config.template:
        found.append(
            "data.template is for data.task=prompt_answer; data.task=multiple_choice has its own: leave it empty."
        )
    return found


def _beside(table: Table, config: DataConfig) -> list[dict[str, Any]]:
    """Of every row, the cells that its order depends on."""
    wanted = {"curriculum.column": config.curriculum.column, "selection.key": config.selection.key}
    wanted |= {"selection.column": config.selection.column}
    columns = {
        name: table.column(name if name in table.cells else table.require(name, {}, f" (data.{option})"))
        for option, name in wanted.items()
        if name not in ("", "data_source")
    }
    return [{name: cells[row] for name, cells in columns.items()} for row in range(table.length)]


@dataclass
class _Question:
    story: str
    question: str
    answer: str  # as the file gives it
    data_source: str = ""
    target: str = ""
    options: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)  # what the file calls the options, where it does
    right: int = 0  # index of the right option


def _questions(table: Table, config: DataConfig) -> tuple[list[_Question], int]:
    """The table's rows, with their options and the right one; and for how many the options were derived."""
    required = ("story", "question", "answer")
    used = {name: table.require(name, config.columns) for name in required}
    used |= {name: column for name in ("data_source", "target") if (column := table.find(name, config.columns))}
    cells = {name: texts(table, column) for name, column in used.items()}
    for name in required:
        if (empty := next((row for row, cell in enumerate(cells[name], start=1) if not cell), 0)) > 0:
            raise InputError(
                f"{table.name}, row {empty}, column {used[name]!r}: the {name} is empty. Fill it in or remove the row."
            )
    found = [_Question(**dict(zip(cells, row, strict=True))) for row in zip(*cells.values(), strict=True)]  # type: ignore
    options_column, derived = _give_options(table, found, config)
    _find_right(table, found, options_column or used["answer"], used["answer"])
    return found, derived


def _give_options(table: Table, questions: list[_Question], config: DataConfig) -> tuple[str, int]:
    """Sets the options of every question. Returns their column ("" where there is none) and how many were derived."""
    given = table.find("options", config.columns) or table.find("choices", config.columns)
    separate = [] if given else [c for name in OPTION_COLUMNS if (c := table.find(name, config.columns))]
    if given or separate:
        column = given or separate[0]
        cells = table.column(given) if given else map(list, zip(*map(table.column, separate), strict=True))
        for row, (question, cell) in enumerate(zip(questions, cells, strict=True), start=1):
            try:
                question.options, question.labels = choices.listed(cell)
                if isinstance(cell, str) and cell.strip() and not question.options:
                    raise ValueError(f"{cell[:80]!r} is a text that lists no options")
            except ValueError as error:
                raise InputError(
                    f"{table.name}, row {row}, column {column!r}: {error}. Write an option as a text, or as "
                    '{"label": "A", "text": "…"}.'
                ) from error
        return column, 0
    without = []
    for row, question in enumerate(questions, start=1):
        question.question, question.options = choices.lettered(question.question)
        if question.options:
            continue
        known = question.data_source in choices.TOM_RL
        if config.derive_options == "never" or (config.derive_options == "auto" and not known):
            raise InputError(
                f"{table.name}, row {row} has no options, and its answer is {question.answer[:80]!r}. Give options in "
                "a column 'options' (a list); or check the answer as a text with data.task=prompt_answer; or take "
                "wrong options from the story and from the answers of other rows with data.derive_options=always."
            )
        without.append(question)
    _derive_options(without)
    return "", len(without)


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


def _find_right(table: Table, questions: list[_Question], options_column: str, answer_column: str) -> None:
    """Sets ``right`` of every question. Answers that count the options are understood where the file shows how."""
    counted = []
    for row, question in enumerate(questions, start=1):
        texts = question.options
        if not 2 <= len(texts) <= len(choices.LETTERS) or not all(texts):
            raise InputError(
                f"{table.name}, row {row}, column {options_column!r}: the options are {texts}; a question needs 2 to "
                f"{len(choices.LETTERS)} of them, and none may be empty. Give them in a column 'options' (a list)."
            )
        index = choices.answer_index(question.answer, texts, question.labels)
        if index is None and choices.number(question.answer) is not None and not question.labels:
            counted.append((row, question))
        elif index is None:
            raise InputError(_not_found(table, row, question, answer_column))
        else:
            question.right = index
    first = choices.counts_from([(q.answer, len(q.options)) for _, q in counted])
    for row, question in counted:
        if first is None:
            raise InputError(
                f"{_not_found(table, row, question, answer_column)} The numbers in this file can count from 0 or "
                "from 1, and nothing in it says which: write letters."
            )
        question.right = (choices.number(question.answer) or 0) - first
        if not 0 <= question.right < len(question.options):
            raise InputError(f"{_not_found(table, row, question, answer_column)} Other rows count from {first}.")


def _not_found(table: Table, row: int, question: _Question, column: str) -> str:
    labels = f", labelled {question.labels}" if question.labels else ""
    return (
        f"{table.name}, row {row}, column {column!r}: the answer {question.answer!r} is not exactly one of the options "
        f"{question.options}{labels}. It must be the letter or the text of one of them."
    )


def _body(question: _Question) -> str:
    listing = "\n".join(f"{letter}. {t}" for letter, t in zip(choices.LETTERS, question.options, strict=False))
    return f"{INSTRUCTION}\n\nStory: {question.story}\n\nQuestion: {question.question}\n\nOptions:\n{listing}"
