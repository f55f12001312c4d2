"""Rows to imitate or to compare, selected from the completions that a run has drawn and scored.

Self-distillation by rejection sampling: what was good enough is imitated (STaR, arXiv 2203.14465; RAFT, 2304.06767).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Selection:
    """What was selected, and of how many."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    completions: int = 0  # of training, evaluations left out
    prompts: int = 0  # that they answer
    most: int = 0  # different completions of one prompt
    cut_off: int = 0  # left out, as they did not end themselves


def select(
    completions: Iterable[Mapping[str, Any]], at_least: float, best_of: int = 0, pairs: bool = False
) -> Selection:
    """Rows of completions.jsonl as rows {raw_prompt, target, reward} of those whose reward is ``at_least`` that.

    ``best_of`` n: of each prompt the n best alone (0: all), earlier ones first where rewards are equal. ``pairs``: rows
    {raw_prompt, chosen, rejected}, of each prompt the best completion that is good enough with the worst that is not.
    The same completion of a prompt counts once. Completions of evaluations are left out, and so are those cut off.
    """
    found = Selection()
    by_prompt: dict[str, dict[str, float]] = {}
    for row in completions:
        if "evaluation" in row or "reward" not in row:
            continue
        found.completions += 1
        if row["finish_reason"] != "stop":
            found.cut_off += 1
            continue
        by_prompt.setdefault(row["prompt"], {}).setdefault(row["response"], row["reward"])
    found.prompts = len(by_prompt)
    found.most = max(map(len, by_prompt.values()), default=0)
    for prompt, rewards in by_prompt.items():
        order = sorted(rewards, key=lambda text: -rewards[text])
        good = [text for text in order if rewards[text] >= at_least]
        if pairs:
            if good and len(good) < len(order):
                found.rows.append({"raw_prompt": prompt, "chosen": good[0], "rejected": order[-1]})
        else:
            good = good[:best_of] if best_of else good
            found.rows += [{"raw_prompt": prompt, "target": text, "reward": rewards[text]} for text in good]
    return found
