"""Which of several completions is taken where each has scores: of a reward model, or of every step by a process one."""

from collections.abc import Sequence

from megatron_rl.evaluation.estimates.votes import STEPS, best_of_n, reduce_steps, weighted


def select(
    answers: Sequence[str], correct: Sequence[float], scores: Sequence[Sequence[float]], steps: bool
) -> dict[str, float]:
    """How right each rule is about one question: ``best_of_n`` takes the completion with the largest score,
    ``weighted_vote`` the answer whose scores have the largest sum.

    ``scores``: one of each completion, or, with ``steps``, one of each of its steps; then the rules are
    ``prm_min_best_of_n``, ``prm_last_weighted_vote`` and so on, by how a
    completion's steps become one score (min, last, average).
    """
    if not steps:
        return _rules("", answers, correct, [each[0] for each in scores])
    found: dict[str, float] = {}
    for how in STEPS:
        found |= _rules(f"prm_{how}_", answers, correct, [reduce_steps(each, how) for each in scores])
    return found


def _rules(head: str, answers: Sequence[str], correct: Sequence[float], scores: Sequence[float]) -> dict[str, float]:
    return {
        f"{head}best_of_n": correct[best_of_n(scores)],
        f"{head}weighted_vote": correct[weighted(answers, scores)],
    }
