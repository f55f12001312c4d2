"""Which groups can teach something."""

from math import inf, nan

import pytest

from megatron_rl.rollout.dynamic.informative import informative
from tests.rollout.dynamic.made import Points, group, rollout


@pytest.mark.parametrize(
    ("rewards", "kept"),
    [
        ([1, 1, 1, 1], False),
        ([0, 0, 0, 0], False),
        ([1, 0, 0, 0], True),
        ([0.1 + 0.2, 0.3], False),  # they differ by rounding
        ([nan, 1, 1], False),  # what is not sound has no say
        ([inf, 1, 0], True),
        ([nan, nan], False),
    ],
)
def test_equal_rewards_are_dropped(rewards, kept):
    assert informative(group(rewards)) is kept


def test_parts_that_differ_while_their_sum_does_not():
    parts = [Points(1.0, {"a/score": a, "b/score": 1 - a, "c/detail": a}) for a in (0.0, 1.0, 1.0)]
    some = [rollout(p) for p in parts]
    assert not informative(some)
    assert informative(some, ["a/score", "b/score"])
    assert not informative(some[1:], ["a/score", "b/score"])
    assert not informative(some, ["d/score"])  # a part that none has
    timed_out = rollout(Points(1.0, failure="ran past 1 s"))
    assert informative([some[1], timed_out], ["a/score"])  # nobody knows its parts
