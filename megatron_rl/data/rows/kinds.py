"""What rows are, as their columns tell: which task or stage takes them."""

from collections.abc import Callable, Collection
from typing import NamedTuple

from megatron_rl.data.files import Table
from megatron_rl.data.rows.choices import TOM_RL
from megatron_rl.data.rows.messages import as_messages
from megatron_rl.data.rows.parts import benchmark


class Kind(NamedTuple):
    """A form of rows."""

    name: str
    use: str  # a task's name, or "sft" or "preference": the stage that takes them; "": none
    note: str = ""  # what else is to be known


def recognise(table: Table) -> Kind | None:
    """The form of a table's rows; None where its columns are of no known one."""
    if name := benchmark(table):
        return Kind(name, "multiple_choice", "for evaluation only: its authors ask that nobody trains on it")
    return next((kind for fits, kind in _KINDS if fits(table)), None)


def _has(*wanted: str) -> Callable[[Table], bool]:
    return lambda table: all(table.find(name, {}) for name in wanted)


def _either(table: Table, names: Collection[str]) -> str | None:
    return next((column for name in names if (column := table.find(name, {}))), None)


def _tom_rl(table: Table) -> bool:
    if not _has("story", "question", "answer", "data_source")(table):
        return False
    return set(map(str, table.column("data_source"))) <= set(TOM_RL)


def _conversation(table: Table) -> bool:
    """Messages, of which the last is the assistant's."""
    column = table.find("messages", {})
    messages = as_messages(table.column(column)[0]) if column else None
    return messages is not None and messages[-1]["role"] == "assistant"


def _sotopia(table: Table) -> bool:
    return _has("scenario", "social_goals")(table) or _has("environment_id", "agent_ids")(table)


def _options(table: Table) -> bool:
    return _has("story", "question", "answer")(table) and bool(_either(table, ("options", "choices", "option_a")))


def _gsm8k(table: Table) -> bool:
    return _has("question", "answer")(table) and "####" in str(table.column(str(table.find("answer", {})))[0])


def _target(table: Table) -> bool:
    asked = _either(table, ("prompt", "question", "problem", "raw_prompt"))
    return bool(asked and _either(table, ("target", "completion", "response"))) and not _either(table, _ANSWERS)


def _prompt(table: Table) -> bool:
    return bool(_either(table, ("messages", "prompt", "question", "problem")) and _either(table, _ANSWERS))


_ANSWERS = ("answer", "reward_model.ground_truth", "ground_truth", "solution")
_KINDS: tuple[tuple[Callable[[Table], bool], Kind], ...] = (  # the first that fits
    (_has("chosen", "rejected"), Kind("pairs", "preference", "reward_model.data takes them too")),
    (_sotopia, Kind("SOTOPIA", "", "episodes of two agents: no task or stage takes them; make {messages} of a side")),
    (_has("context", "question", "answerA", "answerB", "answerC", "label"), Kind("Social IQa", "social_iqa")),
    (
        _has("prompt", "reward_model.ground_truth.answerA"),
        Kind("Social IQa, as DeepEnlighten prepared it", "social_iqa"),
    ),
    (_tom_rl, Kind("ToM-RL", "multiple_choice", "options are derived from the story and from other rows")),
    (_has("story", "question_order", "choices", "answer"), Kind("Hi-ToM", "multiple_choice")),
    (_options, Kind("questions with options", "multiple_choice")),
    (_conversation, Kind("conversations", "sft", "the assistant's turns are learned")),
    (_gsm8k, Kind("GSM8K", "prompt_answer")),
    (_has("problem", "solution"), Kind("MATH", "prompt_answer")),
    (_has("prompt", "reward_model.ground_truth"), Kind("verl", "prompt_answer")),
    (_target, Kind("prompts with what to imitate", "sft")),
    (_prompt, Kind("prompts with an answer", "prompt_answer")),
)
