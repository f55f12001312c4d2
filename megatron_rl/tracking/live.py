"""The numbers of a run at a glance: a few lines that stay on a terminal while it trains."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import isfinite

from megatron_rl.system.supervision.screen import duration

WIDTH = 79  # columns, at most
BARS = "▁▂▃▄▅▆▇█"
TREND = 24  # columns of a course
PARTS = ("generate", "reward", "update", "swap")  # of a step
ROWS: dict[str, tuple[tuple[str, str, str], ...]] = {  # title -> (what, number, how it is written)
    "completions": (
        ("accuracy", "accuracy", ".1%"),
        ("length", "length", ",.1f"),
        ("cut off", "truncated", ".1%"),
        ("equal groups", "equal_groups", ".0%"),
    ),
    "pairs": (("accuracy", "pair_accuracy", ".1%"), ("margin", "pair_margin", ".3f")),
    "policy": (
        ("KL", "kl", ".2g"),
        ("entropy", "entropy", ".2g"),
        ("clipped", "clip_fraction", ".1%"),
        ("mismatch", "engine_kl_k3", ".1g"),
        ("gradient", "grad_norm", ".2g"),
    ),
}


def panel(
    stage: str,
    step: int,
    total: int,
    numbers: Mapping[str, float],
    course: Sequence[float],
    left: float | None,
    notes: Sequence[str] = (),
) -> str:
    """Lines that say how a stage stands after a step.

    ``course``: the reward (or the loss) of the steps so far; ``left``: seconds until the stage is done; None where
    nobody knows. What a stage has no numbers of is left out.
    """
    main = "reward" if "reward" in numbers else "loss"
    head = [f"{stage} step {step:,}{f' of {total:,}' if total else ''}"]
    if main in numbers:
        head.append(f"{main} {numbers[main]:.3f} {trend(course)}")
    if left is not None:
        head.append(f"{duration(left)} left" if left else "done")
    lines = ["─" * WIDTH, "   ".join(head)]
    shown = {"reward": _terms(numbers)} | {title: _row(row, numbers) for title, row in ROWS.items()}
    shown |= {"speed": _speed(numbers)}
    lines += [f"  {title:<12}{text}" for title, text in shown.items() if text]
    lines += [f"  {note}" for note in notes]
    return "\n".join(line[:WIDTH] for line in lines)


def trend(course: Sequence[float]) -> str:
    """A course in ``TREND`` columns: means of neighbouring steps, from the least to the greatest.

    What is not finite is left out.
    """
    course = [value for value in course if isfinite(value)]
    if len(course) < 2:
        return ""
    count = min(TREND, len(course))
    edges = [round(i * len(course) / count) for i in range(count + 1)]
    means = [sum(course[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    if high == low:
        return BARS[0] * count
    return "".join(BARS[min(len(BARS) - 1, int((mean - low) / (high - low) * len(BARS)))] for mean in means)


def _terms(numbers: Mapping[str, float]) -> str:
    """The reward's terms, as far as they have room."""
    scores = {key[len("reward/") : -len("/score")]: value for key, value in numbers.items() if key.endswith("/score")}
    return "  ".join(f"{name} {value:.3f}" for name, value in scores.items() if value is not None)


def _row(row: Sequence[tuple[str, str, str]], numbers: Mapping[str, float]) -> str:
    return "  ".join(f"{what} {numbers[key]:{form}}".replace("%", " %") for what, key, form in row if key in numbers)


def _speed(numbers: Mapping[str, float]) -> str:
    step = numbers.get("time/step", 0.0)
    if not step:
        return ""
    shares = {part: numbers.get(f"time/{part}", 0.0) / step for part in PARTS}
    split = ", ".join(f"{part} {share:.0%}".replace("%", " %") for part, share in shares.items() if share >= 0.005)
    return f"{numbers.get('tokens_per_second', 0.0):,.0f} tokens/s  step {step:.3g} s{f': {split}' if split else ''}"
