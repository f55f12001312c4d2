"""What a suite is: questions, how an answer is read and judged, and what its scores are put together to."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from megatron_rl.data.config import DataConfig
from megatron_rl.data.files import Table, is_local, read_table
from megatron_rl.data.rows.template import Message, make_template
from megatron_rl.data.task import Example, Report, Sample
from megatron_rl.errors import InputError
from megatron_rl.evaluation.config import SuiteConfig

ENDLESS = 10**9  # tokens: here no prompt is too long before the engine says so


@dataclass(frozen=True)
class Card:
    """What is to be known of a suite before its number is believed."""

    title: str
    source: str  # who made it, and where it is
    licence: str
    protocol: str  # how it is asked and scored
    training: str  # whether its authors forbid to train on it
    where: str  # what to do where its data are missing
    hub: str = ""  # data set of the hub, where it is there; empty: local files only, or generated
    subset: str = ""
    split: str = "test"
    takes: tuple[str, ...] = ()  # options beside those of every suite
    max_new_tokens: int = 1024  # of a completion, where nobody says otherwise


@dataclass(frozen=True)
class Item:
    """One question, in one form or in several (orders of its options, languages) whose answers are one vote."""

    id: str  # unique in its suite
    forms: tuple[Example, ...]
    groups: Mapping[str, str] = field(default_factory=dict)  # what accuracy is given by: kind -> this question's


@dataclass(frozen=True)
class Outcome:
    """How an item was answered."""

    item: Item
    scores: list[float]  # of each of its samples, after the vote of its forms; 0 to 1
    records: list[dict[str, Any]]  # of its completions, form by form


Values = list[float] | float
"""Scores whose mean is a measure, or a measure that is no mean."""
Measures = Callable[[Sequence[Outcome]], dict[str, Values]]


def no_measures(outcomes: Sequence[Outcome]) -> dict[str, Values]:
    """Of suites whose accuracy says all."""
    return {}


@dataclass(frozen=True)
class Suite:
    """Questions with their judge. ``report`` is called in the reward workers, ``extract`` in the caller's process."""

    name: str
    items: tuple[Item, ...]
    report: Report  # ``correct`` and, where an answer has a form, ``format``
    extract: Callable[[Sample], str]  # the answer that a completion gives, in the words of a vote; "" for none
    measures: Measures = no_measures

    def fingerprint(self) -> str:
        """xxh3-128 (hex) of the prompts, which a model's chat template decides too, and of the right answers."""
        return _hash(f"{form.id}\n{form.prompt}\n{form.answer!r}\n" for item in self.items for form in item.forms)

    def questions(self) -> str:
        """The same of which questions there are and their right answers, whoever is asked."""
        return _hash(f"{item.id}\n{form.id}\n{form.answer!r}\n" for item in self.items for form in item.forms)


def _hash(texts: Iterable[str]) -> str:
    digest = xxhash.xxh3_128()
    for text in texts:
        digest.update(text.encode())
    return digest.hexdigest()


class Asking:
    """How a suite's messages become prompts."""

    def __init__(self, name: str, config: SuiteConfig, tokenizer: Any) -> None:
        """Raises InputError where the tokenizer has no such form."""
        data = DataConfig(prompt=config.prompt, chat_template_kwargs=config.chat_template_kwargs)
        self.name, self._template = name, make_template(data, tokenizer)

    def __call__(self, user: str, system: str = "") -> str:
        """A prompt of a user's text and, where there is one, of a system message before it."""
        messages: list[Message] = [{"role": "system", "content": system}] if system else []
        try:
            return self._template([*messages, {"role": "user", "content": user}])
        except ValueError as error:
            raise InputError(
                f"{self.name}: its prompts cannot be made: {error}. Try {self.name}.prompt=plain."
            ) from error


def read_rows(name: str, card: Card, config: SuiteConfig, limit: int = 0) -> Table:
    """The rows of a suite in one table. Raises InputError that says where the data are to be had."""
    path = config.path or card.hub
    if not path:
        raise InputError(f"{name} needs its data: {card.where}")
    try:
        return read_table(path, config.split or card.split, limit, config.subset or card.subset, name)
    except InputError as error:
        raise InputError(f"{error} {card.where}") from error


def read_files(name: str, card: Card, config: SuiteConfig, names: Sequence[str]) -> dict[str, Table]:
    """The tables of a suite that is a folder of files; a path to one of them alone gives that one.

    ``names``: of the files without their endings, "" standing for all that the folder has. Raises InputError that says
    where the data are to be had.
    """
    path = Path(config.path)
    if not config.path:
        raise InputError(f"{name} needs its data: {card.where}")
    if path.is_file():
        return {path.stem: read_rows(name, card, config)}
    if not path.is_dir():
        raise InputError(f"{name}: {path} is neither a file nor a folder. {card.where}")
    files = sorted(file for file in path.glob("*.jsonl") if not names or file.stem in names)
    lacking = [wanted for wanted in names if wanted not in {file.stem for file in files}]
    if lacking or not files:
        raise InputError(f"{name}: the folder {path} has no {lacking[0] if lacking else '*'}.jsonl. {card.where}")
    return {file.stem: read_table(str(file), "", 0, "", name) for file in files}


def missing(card: Card, name: str, config: SuiteConfig) -> str:
    """What is wrong with where a suite's data are said to be, as far as a look at the names shows; "" for nothing."""
    if not config.path:
        return "" if card.hub or not card.where else f"{name} needs its data: {card.where}"
    if is_local(config.path) and not Path(config.path).exists():
        return f"{name}: {config.path} does not exist. {card.where}"
    return ""
