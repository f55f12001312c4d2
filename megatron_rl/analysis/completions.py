"""What is known of each completion that a run has written, small enough to keep it for all of them."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from megatron_rl.analysis.lines import Lines
from megatron_rl.analysis.recorded import Recorded, said
from megatron_rl.data.answers.languages import mix
from megatron_rl.data.answers.think_answer import parse
from megatron_rl.data.task import Sample
from megatron_rl.rewards.terms.social.sip import find_stages, structure
from megatron_rl.rewards.terms.social.social_monitors import social_monitors

AHA = (  # DeepEnlighten's words (analysis/*.py); the last two as whole words
    *("rethink", "re-think", "think again", "retry", "re-try", "try again", "recheck", "re-check", "check again"),
    *("reevaluate", "re-evaluate", "double check", "double-check", "verify", "summarize", "summary", "aha", "wait"),
)
_WHOLE = {word: re.compile(rf"\b{word}\b") for word in ("aha", "wait")}
_OPTION = re.compile("nswer is|ption")  # without these no option is named
_ANSWER = re.compile(r"<answer>(.*?)(?:</answer>|$)", re.IGNORECASE | re.DOTALL)


class Seen(NamedTuple):
    """One completion; None is what its row does not say."""

    offset: int  # of its line, in bytes
    step: int
    evaluation: str  # "" of training
    mode: str  # sampled or greedy, of an evaluation
    id: str  # of the prompt
    reward: float | None
    right: bool | None  # the report's ``correct``
    score: float | None  # of the answer: a component "…/answer", else 0 or 1
    tokens: int | None
    characters: int
    think: int  # length of the reasoning, in what it was measured
    think_mix: str  # as ``mix`` says
    answer_mix: str
    stages: tuple[bool, ...]  # which of the four are there
    order: float
    faithful: float | None  # the report's, else what ``social_monitors`` says where an option is named
    aha: dict[str, int]  # word -> character of the reasoning at which it stands first
    facts: dict[str, Any]  # short values of the example, and its source
    cut_off: bool


def read_completions(run: Recorded, measure: Callable[[str], int] = len) -> list[Seen]:
    """All of the file, in its order; what is missing or damaged is added to the run's notes.

    ``measure``: how long a reasoning is, in characters unless it says otherwise.
    """
    lines = Lines(run.folder.completions_file)
    found, wrong = [], Counter[str]()
    for offset, row in lines:
        if isinstance(row.get("response"), str) and isinstance(row.get("prompt"), str):
            found.append(seen(offset, row, measure))
        else:
            wrong["rows"] += 1
    if not found:
        kept = "" if lines.path.is_file() else f" ({lines.path.name} does not exist)"
        run.notes.append(f"There are no completions{kept}: nothing is said about what the model writes.")
    if wrong["rows"]:
        run.notes.append(f"{lines.path.name}: {wrong['rows']:,} rows without prompt and response are left out.")
    run.notes += said(lines)
    return found


def seen(offset: int, row: Mapping[str, Any], measure: Callable[[str], int] = len) -> Seen:
    """What is known of the completion in a row."""
    prompt, response = row["prompt"], row["response"]
    parts = row.get("components") or {}
    report = row.get("report") or {}
    think, answer = texts(prompt, response)
    facts = dict(row.get("extra") or {})
    if source := row.get("data_source"):
        facts["data_source"] = source
    stages = find_stages(think, 1)  # whatever is said under a heading
    faithful = report.get("faithful", parts.get("social_monitors/score"))
    if faithful is None and _OPTION.search(think):
        monitors = social_monitors(Sample(prompt, response, row.get("answer"), extra=facts))
        faithful = monitors["score"] if monitors["named"] else None
    right = None if report.get("correct") is None else report["correct"] >= 1
    score = next((value for name, value in parts.items() if name.endswith("/answer")), None)
    lower = think.lower()
    return Seen(
        offset=offset,
        step=int(row.get("step", 0)),
        evaluation=str(row.get("evaluation", "")),
        mode=str(row.get("mode", "")),
        id=str(row.get("id", "")),
        reward=row.get("reward"),
        right=right,
        score=score if score is not None or right is None else float(right),
        tokens=row.get("tokens"),
        characters=len(response),
        think=measure(think),
        think_mix=mix(think),
        answer_mix=mix(answer),
        stages=tuple(stage is not None for stage in stages),
        order=structure(think, stages)["order"],
        faithful=faithful,
        aha={word: place for word in AHA if (place := _first(word, lower)) >= 0},
        facts=facts,
        cut_off=row.get("finish_reason") == "length",
    )


def _first(word: str, lower: str) -> int:
    """The character at which a word of ``AHA`` stands first; -1 where it does not."""
    place = lower.find(word)
    if place >= 0 and word in _WHOLE:
        match = _WHOLE[word].search(lower)
        return match.start() if match else -1
    return place


def texts(prompt: str, response: str) -> tuple[str, str]:
    """The reasoning and the answer in a completion; "" for what it has not."""
    _, think, parts = parse(prompt, response)
    if parts:
        return think, parts.answer
    match = _ANSWER.search(response)
    return think, match[1] if match else ""


def drawn_in_training(completions: list[Seen]) -> list[Seen]:
    """Without those of evaluations."""
    return [one for one in completions if not one.evaluation]


def spans(completions: list[Seen], count: int = 20) -> Iterator[tuple[float, list[Seen]]]:
    """Completions of training in up to ``count`` spans of steps, each with its middle step; empty ones are left out."""
    drawn = drawn_in_training(completions)
    if not drawn:
        return
    first, last = min(one.step for one in drawn), max(one.step for one in drawn)
    width = max(1.0, (last - first + 1) / count)
    sorted_in: dict[int, list[Seen]] = {}
    for one in drawn:
        sorted_in.setdefault(int((one.step - first) / width), []).append(one)
    for at in sorted(sorted_in):
        steps = [one.step for one in sorted_in[at]]
        yield (min(steps) + max(steps)) / 2, sorted_in[at]
