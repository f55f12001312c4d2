"""Which answer several completions of a question give together: by number, or by scores.

The rules and their ties are those of compute-optimal test-time scaling
(github.com/RyanLiu112/compute-optimal-tts, ``reason/reranking/vote_utils.py``): what came first wins. The same question
asked in several languages is one vote of all its answers: Cross-Lingual Consistency (arXiv 2504.01857).
"""

from collections.abc import Callable, Sequence

EMPTY = -1.0  # the score of a completion without any
STEPS: dict[str, Callable[[Sequence[float]], float]] = {  # of a process reward model, reduced to one score
    "min": min,
    "last": lambda scores: scores[-1],
    "average": lambda scores: sum(scores) / len(scores),
}


def majority(answers: Sequence[str]) -> int:
    """The first place of the answer that is given most often, of several such the one that was given first."""
    return weighted(answers, [1.0] * len(answers))


def weighted(answers: Sequence[str], scores: Sequence[float]) -> int:
    """The first place of the answer whose scores have the largest sum, of several such the one given first."""
    totals: dict[str, float] = {}
    for answer, score in zip(answers, scores, strict=True):
        totals[answer] = totals.get(answer, 0.0) + score
    return answers.index(max(totals, key=totals.__getitem__))


def best_of_n(scores: Sequence[float]) -> int:
    """The place of the largest score, the first of several."""
    return scores.index(max(scores))


def reduce_steps(scores: Sequence[float], how: str) -> float:
    """One score of a completion from those of its steps: ``min``, ``last`` or ``average``; ``EMPTY`` without steps."""
    return STEPS[how](scores) if scores else EMPTY
