"""The reward of a mathematical answer, in its three modes."""

import pytest

from megatron_rl.data.task import Sample
from megatron_rl.rewards.config import RewardsConfig
from megatron_rl.rewards.registry import check_rewards
from megatron_rl.rewards.terms.math_answer import math_answer
from megatron_rl.rewards.workers.pool import RewardPool

TEXTS = {
    "right": r"<think>half</think> It is \boxed{\frac{1}{2}}.",
    "wrong": r"It is \boxed{2}.",
    "unboxed right": "It is 0.5",
    "unboxed wrong": "It is 0.6",
    "nothing": "",
}


@pytest.mark.parametrize(
    ("mode", "scores"),
    [("plain", [1, 0, 0, 0, 0]), ("mix", [1, -0.5, -1, -1, -1]), ("independent", [1, -0.5, 0.5, -1, -1])],
)
def test_modes(mode: str, scores: list[float]) -> None:
    found = [math_answer(Sample("", text, "1/2"), mode) for text in TEXTS.values()]
    assert [f["score"] for f in found] == scores
    assert [f["boxed"] for f in found] == [1, 1, 0, 0, 0]


def test_in_the_workers() -> None:
    config = RewardsConfig(terms={"math_answer": 1.0}, args={"math_answer": {"mode": "mix"}}, workers=1)
    assert check_rewards(config) == []
    pool = RewardPool(config)
    try:
        scored = pool.score([Sample("", text, "1/2") for text in TEXTS.values()])
    finally:
        pool.close()
    assert [s.reward for s in scored] == [1, -0.5, -1, -1, -1]
    config.args["math_answer"]["mode"] = "rigid"
    assert "must be plain or mix or independent" in check_rewards(config)[0]


def test_a_formula_that_never_ends_costs_its_deadline_alone() -> None:
    """A tower of powers: the worker is killed, the samples beside it are scored."""
    config = RewardsConfig(terms={"math_answer": 1.0}, workers=1, deadline=3.0, deadline_score=0.0)
    tower = r"\boxed{" + "9^{" * 6 + "9" + "}" * 6 + "}"
    pool = RewardPool(config)
    try:
        scored = pool.score([Sample("", text, "1/2") for text in (TEXTS["right"], tower, TEXTS["right"])])
    finally:
        pool.close()
    assert [s.reward for s in scored] == [1, 0, 1]
