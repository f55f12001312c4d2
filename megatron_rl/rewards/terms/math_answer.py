"""Whether the boxed answer of a completion is mathematically the right one."""

from typing import Literal

from megatron_rl.data.answers.math_answer import judge, judge_number
from megatron_rl.data.task import Sample
from megatron_rl.rewards.registry import Score


def math_answer(sample: Sample, mode: Literal["plain", "mix", "independent"] = "plain") -> Score:
    """1 when the last \\boxed{} of the completion equals ``sample.answer`` as math-verify sees it, else 0.

    ``mode``: the two others are early rewards of SimpleRL-Zoo (arXiv 2503.18892), which pay for the form: ``mix`` gives
    1 right, -0.5 wrong, -1 without a box; ``independent`` 1 right, -0.5 wrong, and without a box 0.5 where the last
    number is right, else -1. ``boxed``: there is a box.
    """
    correct, answered = judge(sample.response, sample.answer)
    score = float(correct)
    if mode != "plain" and not correct:
        score = -0.5 if answered else -1.0
        if mode == "independent" and not answered and judge_number(sample.response, sample.answer):
            score = 0.5
    return {"score": score, "boxed": float(answered)}
