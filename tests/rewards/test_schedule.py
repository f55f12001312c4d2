"""Weights that change over the steps of RL, in the sum and in its parts."""

from dataclasses import replace

import numpy as np
import pytest

from megatron_rl.data.task import Example, Sample
from megatron_rl.rewards.config import RewardsConfig
from megatron_rl.rewards.registry import check_rewards
from megatron_rl.rewards.schedule import Schedule, check_schedule
from megatron_rl.rewards.workers.pool import RewardPool
from megatron_rl.rewards.workers.terms import bind, score_sample
from megatron_rl.rollout.rollout import Rollout
from megatron_rl.training.rows import credited

CONFIG = RewardsConfig(
    terms={"format": 2.0, "multiple_choice": 1.0, "length_window": 0.0},
    schedules={"format": {"steps": 100, "end": 0.0}, "multiple_choice": {"steps": 10, "start": 0.5, "kind": "step"}},
)
FORMED = "<think>r</think><Answer>A</Answer>"


@pytest.mark.parametrize(
    ("kind", "factors"),
    [("linear", [3, 2.5, 2, 1, 1]), ("cosine", [3, 2.7071067811865475, 2, 1, 1]), ("step", [3, 3, 3, 1, 1])],
)
def test_factors(kind: str, factors: list[float]) -> None:
    schedule = Schedule(steps=200, start=3.0, end=1.0, kind=kind)
    assert [schedule.factor(step) for step in (0, 50, 100, 200, 900)] == pytest.approx(factors)


def test_the_curriculum_of_social_r1_is_a_schedule() -> None:
    from megatron_rl.rewards.terms.social.social_r1 import weights

    structure, content = Schedule(200, 2.0, 1.0), Schedule(200, 1.0, 3.0)
    for step in (0, 1, 50, 199, 200, 1000):
        assert (structure.factor(step), content.factor(step)) == pytest.approx(weights(step))


def test_the_sum_and_its_parts_agree_at_every_step() -> None:
    """Those of a group that waited are of the step that it was scored for."""
    drawn = [Sample("Q?", FORMED if i % 3 else "A", "AB"[i % 2], step=7 * i) for i in range(40)]
    with RewardPool(replace(CONFIG, workers=1)) as pool:
        scored = pool.score(drawn)
    assert [s.step for s in scored] == [sample.step for sample in drawn]
    assert [s.reward for s in scored] == [score_sample(bind(CONFIG), sample)[0] for sample in drawn]
    no = np.zeros(0)
    rollouts = [Rollout(Example("1", "", "A"), no, no, no, 0, "", "stop", (), scored=s) for s in scored]
    rewards, terms = credited(rollouts, CONFIG.parts_at)
    parts = {name: term.scores * term.weights for name, term in terms.items()}
    assert parts.keys() == CONFIG.terms.keys()
    np.testing.assert_allclose(sum(parts.values()), rewards, rtol=0, atol=1e-12)
    of_format = {
        sample.step: part for sample, part in zip(drawn, parts["format"], strict=True) if sample.response != "A"
    }
    assert (of_format[49], of_format[70], of_format[140]) == pytest.approx((2 * 0.51, 2 * 0.3, 0.0))
    assert set(parts["multiple_choice"]) <= {0.0, 0.5, 1.0} and not parts["length_window"].any()


def test_without_schedules_the_weights_are_those_of_the_terms() -> None:
    config = RewardsConfig(terms={"format": 2.0}, overlong_buffer=8)
    assert config.parts_at(0) == config.parts_at(1000) == {"format": 2.0, "overlong": 1.0}


@pytest.mark.parametrize(
    ("schedules", "said"),
    [
        (
            {"formt": {"steps": 3, "end": 0.0}},
            "rewards.schedules names 'formt', which is not in rewards.terms; did you",
        ),
        ({"format": {"end": 0.0}}, "rewards.schedules.format.steps is None; it must be a whole number of RL steps"),
        ({"format": {"steps": 0, "end": 0.0}}, "rewards.schedules.format.steps is 0; it must"),
        ({"format": {"steps": 3, "end": "low"}}, "rewards.schedules.format.end is 'low'; it must be a finite number"),
        ({"format": {"steps": 3, "end": float("inf")}}, "rewards.schedules.format.end is inf"),
        ({"format": {"steps": 3, "end": 0, "kind": "exp"}}, "kind is 'exp'; it must be linear, cosine or step."),
        ({"format": {"steps": 3, "stop": 0}}, "rewards.schedules.format.stop is unknown; did you mean steps?"),
        ({"format": {"steps": 3}}, "rewards.schedules.format has the same start and end"),
    ],
)
def test_bad_schedules(schedules: dict, said: str) -> None:
    (found,) = check_rewards(RewardsConfig(terms={"format": 1.0}, schedules=schedules))
    assert said in found


def test_all_wrong_names_are_told_at_once():
    found = check_schedule("k", {"stepz": 3, "foo": 1, "kind": "no"})
    assert [said.partition(" ")[0] for said in found] == ["k.stepz", "k.foo", "k.kind"]
    assert "did you mean steps?" in found[0] and "did you mean" not in found[1]
