"""How a completion reasons, as SimpleRL-Zoo counts it (arXiv 2503.18892): a monitor, used with the weight 0.

Its other numbers are metrics of every run: ``truncated`` (its clip ratio), ``length_stopped``, ``length_right``,
``length_wrong`` and ``pass_at_k``.
"""

from collections.abc import Sequence

from megatron_rl.data.answers.exact_answer import boxed
from megatron_rl.data.answers.repetition import repeats
from megatron_rl.data.task import Sample
from megatron_rl.rewards.registry import Score

KEYWORDS = ("recheck", "rethink", "try again", "wait", "alternatively", "retry", "however")


def reasoning_style(sample: Sample, keywords: Sequence[str] = KEYWORDS) -> Score:
    """``score``: 0, or 1 where the completion repeats itself; ``keywords``: how often it has one of them, in whatever
    case, words inside words too; ``boxed``: it has a \\boxed{} that ends."""
    text = sample.response.lower()
    return {
        "score": float(repeats(text)),
        "keywords": float(sum(text.count(word.lower()) for word in keywords)),
        "boxed": float(boxed(text) is not None),
    }
