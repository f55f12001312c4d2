"""The length of the reasoning and its repetitions, in characters (``R_len`` of Social-R1, arXiv 2603.09249)."""

from math import exp

import numpy as np

from megatron_rl.data.answers.think_answer import parse
from megatron_rl.data.task import Sample
from megatron_rl.rewards.registry import Score

GRAM = 16  # characters
ALLOWED_REPEATS = 0.1  # share of 16-grams
_EIGHT_BYTES = np.dtype("<u8")


def length_window(sample: Sample, l_min: float = 400.0, l_max: float = 3000.0) -> Score:
    """Length window times repetition penalty of the reasoning; components ``window`` and ``repetition``."""
    text = parse(sample.prompt, sample.response).think
    window, repetition = window_factor(len(text), l_min, l_max), repetition_factor(text)
    return {"score": window * repetition, "window": window, "repetition": repetition}


def window_factor(length: int, l_min: float = 400.0, l_max: float = 3000.0) -> float:
    """sigmoid((length - l_min) / 50) * sigmoid((l_max - length) / 50)."""
    return _sigmoid((length - l_min) / 50) * _sigmoid((l_max - length) / 50)


def repetition_factor(text: str) -> float:
    """1 up to a repeat ratio of 0.1, then exp(-8 (ratio - 0.1)); the ratio is (N - distinct) / N over 16-grams."""
    total = len(text) - GRAM + 1
    if total < 1 or _distinct_at_least(text) >= (1 - ALLOWED_REPEATS) * total:
        return 1.0
    distinct = len({text[i : i + GRAM] for i in range(total)})
    return exp(-8 * max(0.0, (total - distinct) / total - ALLOWED_REPEATS))


def _distinct_at_least(text: str) -> int:
    """A lower bound of the number of distinct 16-grams of a text of 16 or more characters.

    A character counts by its lowest byte and a gram by the difference of its two halves, each read as
    one integer. It costs a thirtieth of a set of slices and settles nearly every text that does not repeat itself.
    """
    data = text.encode("latin-1") if text.isascii() else text.encode("utf-32-le", "surrogatepass")[::4]
    halves = np.ndarray((len(data) - 7,), _EIGHT_BYTES, data, 0, (1,)).copy()  # at every offset
    hashes = halves[:-8] - halves[8:]
    hashes.sort()
    return 1 + int(np.count_nonzero(hashes[1:] != hashes[:-1]))


def _sigmoid(x: float) -> float:
    return 1 / (1 + exp(min(-x, 700.0)))  # exp overflows beyond 709
