"""What rows are, as their columns tell: which task or stage takes them."""

from collections.abc import Callable, Collection
from typing import NamedTuple

from megatron_rl.data.files import Table
from megatron_rl.data.rows.choices import TOM_RL
from megatron_rl.data.rows.messages import as_messages, short
from megatron_rl.data.rows.parts import benchmark
from megatron_rl.data.rows.sotopia import turns_column

SOTOPIA = "SOTOPIA"


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


def nearest(table: Table) -> str:
    """Why rows are of no known form, in a sentence: what the nearest ones lack, or a wrong role; "" without a hint."""
    column = table.find("messages", {})
    first = table.column(column)[0] if column else None
    if column and as_messages(first) is None:
        return (
            f"Column {column!r} is none of messages: row 1 has {short(first)}, and it must be a list of objects "
            '{"role": "user" or "assistant", "content": "…"}.'
        )
    messages = as_messages(first) if column else None
    if messages and not _either(table, _ANSWERS):
        return (
            f"The last message of row 1, column {column!r}, has the role {messages[-1]['role']!r}: a conversation to "
            "imitate ends with 'assistant', and prompts need a column 'answer' beside them."
        )
    lacking = {name: [g for g in groups if not _either(table, g)] for name, groups in _NEEDED.items()}
    some = {name: gone for name, gone in lacking.items() if len(gone) < len(_NEEDED[name])}
    if not some:
        return ""
    fewest = min(map(len, some.values()))
    said = [
        f"{name}, but without {' and '.join(' or '.join(map(repr, group)) for group in gone)}"
        for name, gone in some.items()
        if len(gone) == fewest
    ]
    return f"They look like {'; or like '.join(said)}."


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
    return turns_column(table) is not None


def _options(table: Table) -> bool:
    return _has("story", "question", "answer")(table) and bool(_either(table, ("options", "choices", "option_a")))


def _gsm8k(table: Table) -> bool:
    return _has("question", "answer")(table) and "####" in str(table.column(str(table.find("answer", {})))[0])


def _target(table: Table) -> bool:
    asked = _either(table, ("prompt", "question", "problem", "raw_prompt"))
    return bool(asked and _either(table, ("target", "completion", "response"))) and not _either(table, _ANSWERS)


def _prompt(table: Table) -> bool:
    return bool(_either(table, ("messages", "prompt", "question", "problem")) and _either(table, _ANSWERS))


def _steps(table: Table) -> bool:
    return bool(_prompt(table) and table.find("steps", {}))


_LINES = "or data.task=math_problems, whose steps are the solution's lines"
_ANSWERS = ("answer", "reward_model.ground_truth", "ground_truth", "solution")
_KINDS: tuple[tuple[Callable[[Table], bool], Kind], ...] = (  # the first that fits
    (_has("chosen", "rejected"), Kind("pairs", "preference", "reward_model.data takes them too")),
    (_sotopia, Kind(SOTOPIA, "sft", "episodes; --out writes a conversation of each side, for sft.data.path")),
    (_has("context", "question", "answerA", "answerB", "answerC", "label"), Kind("Social IQa", "social_iqa")),
    (
        _has("prompt", "reward_model.ground_truth.answerA"),
        Kind("Social IQa, as DeepEnlighten prepared it", "social_iqa"),
    ),
    (_tom_rl, Kind("ToM-RL", "multiple_choice", "options are derived from the story and from other rows")),
    (_has("story", "question_order", "choices", "answer"), Kind("Hi-ToM", "multiple_choice")),
    (_options, Kind("questions with options", "multiple_choice")),
    (_conversation, Kind("conversations", "sft", "the assistant's turns are learned")),
    (_steps, Kind("problems with steps", "math_problems", "each with one step or more; hints are told from them")),
    (_gsm8k, Kind("GSM8K", "prompt_answer", _LINES)),
    (_has("num_clues", "prompt", "solution"), Kind("deduction puzzles", "temporal_clue")),
    (_has("problem", "solution"), Kind("MATH", "prompt_answer", _LINES)),
    (_has("prompt", "reward_model.ground_truth"), Kind("verl", "prompt_answer")),
    (_target, Kind("prompts with what to imitate", "sft")),
    (_prompt, Kind("prompts with an answer", "prompt_answer")),
)
_PROMPTS = ("prompt", "question", "problem", "messages")
_NEEDED: dict[str, tuple[tuple[str, ...], ...]] = {  # of each form, columns of which one must be there
    "pairs": (("chosen",), ("rejected",)),
    "Social IQa": tuple((name,) for name in ("context", "question", "answerA", "answerB", "answerC", "label")),
    "questions with options": (("story",), ("question",), ("answer",), ("options", "choices", "option_a")),
    "prompts with an answer": (_PROMPTS, ("answer", "solution")),
    "prompts with what to imitate": (_PROMPTS, ("target", "completion", "response")),
}
