"""ToMBench (Chen et al. 2024, arXiv 2402.15052): twenty tasks of social reasoning, in English and Chinese.

The protocol is that of the authors' scripts (github.com/zhchen18/ToMBench, ``run_huggingface.py``, ``get_results.py``):
options in five random orders, an answer each, the majority counts; an answer is read by ``chosen_option.bracketed``.
There the number of options is that of the Chinese ones, an option's place in the order is that of the first with its
text, a letter that is no option votes for none, and one question, whose answer is written "A. ", is never right; so it
is here. The orders are drawn anew by question, so that they
do not depend on which files there are.
"""

import random
import re
from typing import Any

from megatron_rl.data.answers.chosen_option import bracketed
from megatron_rl.data.files import Table
from megatron_rl.data.rows.choices import text as cell_text
from megatron_rl.data.task import Example, Sample
from megatron_rl.errors import InputError
from megatron_rl.evaluation.config import SuiteConfig
from megatron_rl.evaluation.suite import Asking, Card, Item, Suite, read_files

CARDS = {
    "tombench": Card(
        title="ToMBench",
        source="Chen et al. 2024, arXiv 2402.15052, github.com/zhchen18/ToMBench: 2,860 questions, 20 tasks",
        licence="MIT",
        protocol="the authors' scripts: options in 5 orders, majority vote, accuracy by task and by ability; greedy",
        training="forbidden: its authors ask that nobody trains on it",
        where="Clone github.com/zhchen18/ToMBench and set tombench.path to its folder data.",
        takes=("language", "cot", "tries"),
    )
}
ABILITIES = ("Emotion", "Desire", "Intention", "Knowledge", "Belief", "Non-Literal Communication")
_COLUMNS = {
    "zh": ("故事", "问题", "选项A", "选项B", "选项C", "选项D"),
    "en": ("STORY", "QUESTION", "OPTION-A", "OPTION-B", "OPTION-C", "OPTION-D"),
}
_ABILITY, _ANSWER = "能力\nABILITY", "答案\nANSWER"
_PARTS = {"zh": ("故事", "问题", "答案选项"), "en": ("Story", "Question", "Candidate Answers")}
_TASK = {
    "zh": (
        "下面是一段故事、一个问题和几个答案选项。请根据故事内容和问题，按常理推断最可能的答案选项，"
        "并输出它的序号。\n注意：\n"
    ),
    "en": (
        "You get a story, a question about it and several answer options. Infer from the story and the question which "
        "option is most likely the answer, and output its index.\nNote:\n"
    ),
}
_RULES = {
    ("zh", False): (
        "（1）只输出最可能的答案序号，格式为：[[答案序号]]。例如最可能的选项是“A. 手提包”时，输出“[[A]]”；\n{choose}\n"
        "（3）只根据所给信息输出最可能的答案序号，不要输出其他内容。"
    ),
    ("zh", True): (
        "（1）先一步步思考并分析问题的答案，最后输出最可能的答案序号，格式为：[[答案序号]]。例如最可能的选项是"
        "“A. 手提包”时，输出“[[A]]”；\n{choose}\n（3）再次强调：必须先给出一步步的推理，最后才输出答案序号，"
        "不要直接输出答案。"
    ),
    ("en", False): (
        "(1) Output only the index of the most likely answer, in the form [[Answer Index]]: where the most likely "
        "option is 'A. Handbag', output '[[A]]';\n{choose}\n(3) Output the index that is most likely given the "
        "information, and nothing else."
    ),
    ("en", True): (
        "(1) First think step by step and analyse the answers, and finally output the index of the most likely answer, "
        "in the form [[Answer Index]]: where the most likely option is 'A. Handbag', output '[[A]]';\n{choose}\n(3) "
        "Again: the step-by-step reasoning comes first and the index last. Do not output the index directly."
    ),
}
_CHOOSE = {
    "zh": (
        "（2）无论故事是否提供了足够的信息，都必须从给定的选项“A、B、C、D”中选择一个。信息不足时，从“[[A]]”“[[B]]”“[[C]]”"
        "“[[D]]”中随机输出一个；"
    ),
    "en": (
        "(2) You must choose one of the given options 'A, B, C, D', whether or not the story says enough. If it does "
        'not, output one of "[[A]]", "[[B]]", "[[C]]", "[[D]]" at random;'
    ),
}


def extract(sample: Sample) -> str:
    """The option that is voted for, by its letter in the file; "" for a letter that is no option."""
    found: str = sample.extra["order"].get(bracketed(sample.response)[0], "")
    return found


def report(sample: Sample) -> dict[str, float]:
    """``correct``: this one vote is for the right option; ``format``: it is given as [[A]]."""
    form = bracketed(sample.response)[1]
    return {"correct": float(extract(sample) == sample.answer), "format": float(form)}


def make(name: str, config: SuiteConfig, tokenizer: Any, seed: int) -> Suite:
    """Reads and checks every row. Raises InputError naming file, row and column."""
    ask = Asking(name, config, tokenizer)
    languages = ("en", "zh") if config.language == "both" else (config.language,)
    tables = read_files(name, CARDS[name], config, ())
    items = [
        _item(table, row, file, language, config, ask, seed)
        for language in languages
        for file, table in tables.items()
        for row in range(table.length)
    ]
    return Suite(name, tuple(items), report, extract)


def ability(cell: str) -> str:
    """The group of an ability, of which there are six: what stands before the first colon."""
    group = cell.partition(":")[0].strip()
    return next((known for known in ABILITIES if known.casefold() == group.casefold()), group)


def _item(table: Table, row: int, file: str, language: str, config: SuiteConfig, ask: Asking, seed: int) -> Item:
    cells = {column: table.cells[table.require(column, {})][row] for column in (*_COLUMNS[language], _ABILITY, _ANSWER)}
    story, question, *options = (_text(table, row, column, cells[column]) for column in _COLUMNS[language])
    count = 4 if _text(table, row, "选项C", table.cells["选项C"][row]) else 2
    texts = [option.replace(f"{letter}. ", "") for letter, option in zip("ABCD", options, strict=True)][:count]
    answer = _text(table, row, _ANSWER, cells[_ANSWER])
    if answer[:1] not in tuple("ABCD"[:count]) or not all(texts):
        raise InputError(
            f"{table.name}, row {row + 1}: its answer is {answer!r} and its options are {texts}; it must be the letter "
            "of one of them, and none is empty. Fetch the file again."
        )
    identity = f"{language}/{file}/{row + 1}"
    system = _TASK[language] + _RULES[language, config.cot].format(choose=_CHOOSE[language])
    forms = []
    for attempt in range(config.tries):
        rng = random.Random(f"{seed}/{identity}/{attempt}")
        shown = sorted(texts, key=lambda _: rng.random())
        order = {letter: "ABCD"[texts.index(option)] for letter, option in zip("ABCD", shown, strict=False)}
        listing = "\n".join(f"{letter}. {option}" for letter, option in zip("ABCD", shown, strict=False))
        heads = _PARTS[language]
        user = f"[{heads[0]}]\n{story}\n\n[{heads[1]}]\n{question}\n\n[{heads[2]}]\n{listing}"
        forms.append(Example(f"{identity}/{attempt}", ask(user, system), answer, "", "tombench", {"order": order}))
    groups = {
        "task": re.sub(r"[ _]+", " ", file),
        "ability": ability(_text(table, row, _ABILITY, cells[_ABILITY])),
        "language": language,
    }
    return Item(identity, tuple(forms), groups)


def _text(table: Table, row: int, column: str, cell: Any) -> str:
    try:
        return cell_text(cell)
    except ValueError as error:
        raise InputError(f"{table.name}, row {row + 1}, column {column!r}: {error}.") from error
