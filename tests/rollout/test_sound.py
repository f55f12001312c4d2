"""Rollouts that cannot be learned from."""

import json
from math import inf, nan

import numpy as np
import pytest

from megatron_rl.rollout.sound import record, unsound
from tests.rollout.dynamic.made import Points, rollout


def test_a_sound_one():
    one = rollout(Points(1.0, {"a/score": -3.0}))
    one.logprobs[0] = nan  # of the prompt, which nobody learns from
    assert unsound(one) == ""


@pytest.mark.parametrize(
    ("reward", "component", "logprob", "reason"),
    [
        (nan, 0.0, -1.0, "its reward is nan"),
        (inf, 0.0, -1.0, "its reward is inf"),
        (1.0, -inf, -1.0, "its reward's component a/score is -inf"),
        (1.0, 0.0, -inf, "the engine's log-prob of its token 1 is -inf"),
        (1.0, 0.0, nan, "the engine's log-prob of its token 1 is nan"),
    ],
)
def test_numbers_that_are_none(reward, component, logprob, reason):
    one = rollout(Points(reward, {"a/score": component}))
    one.logprobs[1] = logprob
    assert unsound(one) == reason
    kept = json.loads(json.dumps(record(one, unsound(one))))
    assert kept["reason"] == reason and kept["tokens"] == [5, 7] and kept["drawn"] == [False, True]
    np.testing.assert_array_equal(kept["logprobs"], one.logprobs)
    assert (kept["id"], kept["response"], kept["finish_reason"], kept["weight_versions"]) == (
        "0",
        "x",
        "stop",
        [[0, 1]],
    )
