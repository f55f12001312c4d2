"""EmoBench (Sabour et al. 2024, arXiv 2402.12071): what somebody feels and why (EU), and what helps most (EA).

The protocol is that of the authors' scripts (github.com/Sahandfer/EmoBench, ``src/data.py``, ``src/utils.py``): answers
are JSON with letters; a question of EU is right where emotion *and* cause are.
"""

import json
from collections.abc import Sequence
from typing import Any

from megatron_rl.data.answers.chosen_option import after_thinking
from megatron_rl.data.files import Table
from megatron_rl.data.task import Example, Sample
from megatron_rl.errors import InputError
from megatron_rl.evaluation.config import SuiteConfig
from megatron_rl.evaluation.suite import Asking, Card, Item, Suite, read_files

CARDS = {
    "emobench": Card(
        title="EmoBench",
        source="Sabour et al. 2024, arXiv 2402.12071, github.com/Sahandfer/EmoBench: 200 questions each of EU and EA",
        licence="MIT",
        protocol="the authors' scripts: answers as JSON; EU counts where emotion and cause are both right; accuracy by "
        "task and by category; greedy",
        training="not forbidden by its authors; meant for evaluation",
        where="Clone github.com/Sahandfer/EmoBench and set emobench.path to its folder data (EA.jsonl, EU.jsonl).",
        takes=("language", "cot"),
    )
}
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_SYSTEM = {
    "en": (
        "# Instructions\n\nYou get a scenario, a question and several choices. Look at the scenario closely and take "
        "the perspective of the person in it. Then select the choice that reflects that perspective, or what the "
        "person feels, best.\n\n# Output\n"
    ),
    "zh": (
        "# 说明\n\n你会看到一个场景、一个问题和几个选项。仔细分析场景，站在当事人的角度思考，"
        "然后选择最能反映其观点或情绪的选项。\n\n# 输出\n"
    ),
}
_OUTPUT = {
    ("en", False): "Give only one correct answer, and no other information or explanation, in this JSON form:",
    ("zh", False): "只给出一个正确的答案，不要其他信息或解释。回复采用以下JSON格式：",
    ("en", True): (
        "Reason step by step: what each choice could mean for the people in question, given their emotions and what "
        "they have been through. Then select the best answer. Reply in this JSON form:"
    ),
    (
        "zh",
        True,
    ): "逐步推理：结合相关人员的情绪和经历，考虑每个选项可能带来的影响，然后选择最合适的答案。回复采用以下JSON格式：",
}
_LETTER = {"en": "<letter of the choice>", "zh": "<选项的字母>"}
_REASONING = {"en": "<step-by-step reasoning>", "zh": "<逐步推理>"}
_HEADS = {"en": ("Scenario", "Question", "Choices"), "zh": ("场景", "问题", "选项")}
_EA = {
    "en": "In this scenario, what is the most effective {kind} for {subject}?",
    "zh": "在这个场景中，{subject}最有效的{kind}是什么？",
}
_EU = {
    "en": ("What emotion(s) would {subject} ultimately feel in this situation?", "Why would {subject} feel these?"),
    "zh": ("在这种情况下，{subject}最终会感受到什么情绪？", "{subject}为什么会感受到这些情绪？"),
}
_KEYS = {"EA": ("answer",), "EU": ("answer_q1", "answer_q2")}


def extract(sample: Sample) -> str:
    """The letters of the answers, one after the other, "" for an answer in another form.

    JSON between ```json and ```, or all that follows the thinking; its letters are compared as they are.
    """
    text = after_thinking(sample.response)
    if "```json" in text:
        text = text.partition("```json")[2].partition("```")[0]
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(said, dict):
        return ""
    letters = [said.get(key, "") for key in _KEYS[sample.extra["task"]]]
    return "/".join(letters) if all(isinstance(letter, str) and letter for letter in letters) else ""


def report(sample: Sample) -> dict[str, float]:
    """``correct``: all its letters are right; ``format``: there is such an answer."""
    found = extract(sample)
    return {"correct": float(found == sample.answer), "format": float(bool(found))}


def make(name: str, config: SuiteConfig, tokenizer: Any, seed: int) -> Suite:
    """Reads and checks every row. Raises InputError naming file, row and column."""
    ask = Asking(name, config, tokenizer)
    languages = ("en", "zh") if config.language == "both" else (config.language,)
    items = []
    tables = read_files(name, CARDS[name], config, ("EA", "EU"))
    for task, table in tables.items():
        if task not in _KEYS:
            raise InputError(f"{name}: {table.name} is neither EA.jsonl nor EU.jsonl. {CARDS[name].where}")
        for number, row in enumerate(_rows(table), start=1):
            if row.get("language") in languages:
                items.append(_item(table, number, task, row, config.cot, ask))
    return Suite(name, tuple(items), report, extract)


def _rows(table: Table) -> list[dict[str, Any]]:
    cells = [table.column(column) for column in table.columns]
    return [dict(zip(table.columns, row, strict=True)) for row in zip(*cells, strict=True)]


def _item(table: Table, number: int, task: str, row: dict[str, Any], cot: bool, ask: Asking) -> Item:
    language = row["language"]
    try:
        parts = [f"## {_HEADS[language][0]}\n{row['scenario']}"]
        if task == "EA":
            question = _EA[language].format(kind=row["question type"], subject=row["subject"])
            parts += [f"## {_HEADS[language][1]}\n{question}", _listing(language, "", row["choices"])]
            answer = _letter(row["choices"], row["label"])
            category = row["category"]
        else:
            asked = zip(_EU[language], (row["emotion_choices"], row["cause_choices"]), strict=True)
            for place, (question, listed) in enumerate(asked, start=1):
                parts.append(f"## {_HEADS[language][1]} {place}\n{question.format(subject=row['subject'])}")
                parts.append(_listing(language, f" {place}", listed))
            answer = f"{_letter(row['emotion_choices'], row['emotion_label'])}/"
            answer += _letter(row["cause_choices"], row["cause_label"])
            category = row["coarse_category"]
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"{table.name}, row {number} is no question of {task} ({error!r}): fetch the file again."
        ) from error
    fields = [f'"{key}": "{_LETTER[language]}"' for key in _KEYS[task]]
    fields = [f'"reasoning": "{_REASONING[language]}"', *fields] if cot else fields
    form = "{\n" + ",\n".join(f"    {line}" for line in fields) + "\n}"
    system = f"{_SYSTEM[language]}{_OUTPUT[language, cot]}\n```json\n{form}\n```"
    identity = f"{task}/{language}/{row['qid']}"
    example = Example(identity, ask("\n\n".join(parts), system), answer, "", "emobench", {"task": task})
    groups = {"task": task, "category": f"{task}: {category}", "language": language}
    return Item(identity, (example,), groups)


def _listing(language: str, place: str, listed: Sequence[str]) -> str:
    lines = [f"{letter}) {option}" for letter, option in zip(LETTERS, listed, strict=False)]
    return "\n".join([f"## {_HEADS[language][2]}{place}", *lines])


def _letter(listed: list[str], right: str) -> str:
    return LETTERS[listed.index(right)]
