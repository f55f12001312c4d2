"""The soft limit on lengths."""

import numpy as np
import pytest

from megatron_rl.data.task import Example
from megatron_rl.rewards.config import RewardsConfig
from megatron_rl.rewards.overlong import add_overlong, overlong
from megatron_rl.rewards.registry import check_rewards
from megatron_rl.rewards.scoring import score
from megatron_rl.rewards.workers.pool import RewardPool, Scored
from megatron_rl.rollout.measure import measure
from megatron_rl.rollout.rollout import Rollout


def drawn(length: int, scored: Scored | None = None) -> Rollout:
    tokens = np.arange(length + 3)
    no = np.zeros(length + 3, np.float32)
    text = "<think>a</think><Answer>B</Answer>"
    return Rollout(Example("0", "p", "B"), tokens, tokens >= 3, no, 3, text, "stop", ((0, length),), scored=scored)


@pytest.mark.parametrize(("length", "penalty"), [(16000, 0), (16384, 0), (18432, -0.5), (20480, -1), (1, 0)])
def test_known_values(length, penalty):
    assert overlong(length, 20480, 4096, 1.0) == pytest.approx(penalty, abs=1e-12)
    assert overlong(length, 20480, 4096, 0.5) == pytest.approx(penalty / 2, abs=1e-12)


def test_it_is_a_part_of_the_reward_and_a_metric():
    """What the workers say stays as it is; the prompt's tokens do not count."""
    config = RewardsConfig(terms={"format": 2.0}, workers=1, overlong_buffer=4, overlong_factor=0.5)
    assert config.parts == {"format": 2.0, "overlong": 1.0} and RewardsConfig({"format": 1.0}).parts == {"format": 1.0}
    groups = [[drawn(5), drawn(8)], [drawn(10), drawn(6)]]
    with RewardPool(config) as pool:
        assert score(pool, groups, step=0, limit=10) == [None, None]
    found = [[(r.scored.reward, r.scored.components) for r in group] for group in groups]
    penalties = [[0.0, -0.25], [-0.5, 0.0]]
    assert found == [[(2 + p, {"format/score": 1.0, "overlong/score": p}) for p in pair] for pair in penalties]
    for group in groups:
        for rollout in group:
            assert rollout.scored.reward == sum(
                w * rollout.scored.components[f"{n}/score"] for n, w in config.parts.items()
            )
    metrics = measure(groups)
    assert metrics["reward/overlong/score"] == -0.1875 and metrics["reward"] == 1.8125


def test_what_has_no_score_keeps_its_reward():
    lost = drawn(10, Scored(-1.0, timed_out=True, failure="ran past 1 s"))
    add_overlong([lost], 10, 4, 1.0)
    assert lost.scored == Scored(-1.0, timed_out=True, failure="ran past 1 s")


def test_options():
    (said,) = check_rewards(RewardsConfig(terms={"format": 1.0}, overlong_factor=0.5))
    assert said.startswith("rewards.overlong_factor=0.5 does nothing without rewards.overlong_buffer")
