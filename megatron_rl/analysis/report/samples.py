"""Which completions the page has, and what it says of each."""

from collections.abc import Iterator, Sequence
from typing import Any

from megatron_rl.analysis.completions import Seen
from megatron_rl.analysis.lines import at
from megatron_rl.analysis.recorded import Recorded
from megatron_rl.data.answers.think_answer import parse
from megatron_rl.rewards.terms.social.sip import find_stages

MOST = 6000  # completions of a page, all its runs together
CHARACTERS = 12_000_000  # of their texts
LEAST = 20  # completions of a run
OF_EVALUATIONS = 0.4  # of the share of a run
LONGEST = 20_000  # characters of a prompt or completion that are shown
RULE = (
    "Of a run with many completions the page has the same questions of the first evaluation, of that before RL "
    "and of the last, and of training the best, the worst and evenly spread ones of every step, or of evenly spread "
    "steps."
)


def choose(seen: Sequence[Seen], count: int) -> list[Seen]:
    """Up to ``count`` completions by ``RULE``, in the order of the file."""
    if len(seen) <= count:
        return list(seen)
    names = list(dict.fromkeys(one.evaluation for one in seen if one.evaluation))
    left = [name for name in names if name.startswith("after ")][-2:-1]  # by the stage before the last
    ends = {
        name: [one for one in seen if one.evaluation == name]
        for name in dict.fromkeys((*names[:1], *left, *names[-1:]))
    }
    room = int(count * OF_EVALUATIONS) // max(1, len(ends))
    chosen = [one for some in ends.values() for one in some[:room]]  # both ask the same in the same order
    drawn: dict[int, list[Seen]] = {}
    for one in seen:
        if not one.evaluation:
            drawn.setdefault(one.step, []).append(one)
    room = count - len(chosen)
    each = max(3, room // max(1, len(drawn)))
    for step in spread(sorted(drawn), room // each):
        chosen += of_step(drawn[step], each)
    return sorted(chosen, key=lambda one: one.offset)


def of_step(some: Sequence[Seen], count: int) -> list[Seen]:
    """The best, the worst and evenly spread others of a step."""
    if len(some) <= count:
        return list(some)
    order = sorted(some, key=lambda one: one.reward if one.reward is not None else 0.0)
    return [order[0], order[-1], *spread(order[1:-1], count - 2)]


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """``count`` of the items, evenly spread, the first and the last among them."""
    if len(items) <= count or count < 2:
        return list(items[: max(0, count)] if count < 2 else items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def packed(runs: Sequence[Recorded], seen: dict[str, list[Seen]]) -> tuple[dict[str, Any], list[str]]:
    """The samples as the page's script reads them, and what is to be said of those left out.

    ``prompts``: each once; ``samples``: see ``_sample``.
    """
    prompts: dict[str, int] = {}
    samples: list[dict[str, Any]] = []
    kept: list[str] = []
    for number, run in enumerate(runs):
        own = seen[run.name]
        count = MOST // len(runs)
        if own:
            mean = sum(min(one.characters, LONGEST) for one in own) / len(own)
            count = max(LEAST, min(count, int(CHARACTERS / len(runs) / max(1.0, mean))))
        chosen = choose(own, count)
        if len(chosen) < len(own):
            kept.append(f"{run.name}: {len(chosen):,} of {len(own):,} completions.")
        samples += _samples(number, run, chosen, prompts)
    content = {"runs": [run.name for run in runs], "prompts": list(prompts), "samples": samples}
    return content, [RULE, *kept] if kept else []


def _samples(number: int, run: Recorded, chosen: Sequence[Seen], prompts: dict[str, int]) -> Iterator[dict[str, Any]]:
    rows = at(run.folder.completions_file, [one.offset for one in chosen])
    for one, row in zip(chosen, rows, strict=True):
        if row is None or not isinstance(row.get("response"), str):
            continue
        prompt = prompts.setdefault(row["prompt"][:LONGEST], len(prompts))
        yield _sample(number, one, row, prompt)


def _sample(run: int, one: Seen, row: dict[str, Any], prompt: int) -> dict[str, Any]:
    """``pieces``: [class, text] each, 1 to 4 a stage of the reasoning, 5 the answer, 0 all else."""
    response = row["response"][:LONGEST]
    found = {
        "run": run,
        "step": one.step,
        "set": one.evaluation,
        "mode": one.mode,
        "id": one.id,
        "prompt": prompt,
        "pieces": pieces(row["prompt"], response),
        "cut": len(row["response"]) - len(response),
        "answer": row.get("answer") if isinstance(row.get("answer"), str) else str(row.get("answer", "")),
        "reward": one.reward,
        "right": one.right,
        "parts": row.get("components") or row.get("report") or {},
        "advantage": row.get("advantage"),
        "tokens": one.tokens,
        "finish": row.get("finish_reason", ""),
        "facts": one.facts,
    }
    return {key: value for key, value in found.items() if value not in (None, "", {})}


def pieces(prompt: str, response: str) -> list[tuple[int, str]]:
    """A completion cut at its stages and its answer; joined they are the completion."""
    text, think, parts = parse(prompt, response)
    added = len(text) - len(response.rstrip())  # the tag that the prompt ended with
    start = text.find("<think>") + len("<think>") - added if think else 0
    cuts = [
        (start + stage[0], start + stage[2], number)
        for number, stage in enumerate(find_stages(think, 1), 1)
        if stage is not None and think
    ]
    if parts and parts.answer:
        end = len(text) - len("</Answer>") - added
        cuts.append((end - len(parts.answer), end, 5))
    found: list[tuple[int, str]] = []
    at = 0
    for first, last, kind in sorted(cuts):
        if first < at:
            continue
        found += [(0, response[at:first]), (kind, response[first:last])]
        at = last
    return [(kind, part) for kind, part in (*found, (0, response[at:])) if part]
