"""Which steps raise an alarm, and that a continued run knows its past."""

import json

import pytest

from megatron_rl.training.alarms import Alarms
from megatron_rl.training.config import AlarmsConfig

STEADY = {"loss": 0.1, "grad_norm": 0.5, "ratio": 1.0, "entropy": 2.0, "length": 100.0, "reward_std": 0.3}


def ran(alarms: Alarms, steps: int, start: int = 0) -> list[str]:
    """Steps whose loss goes up and down by 0.01."""
    return [
        said for i in range(start, start + steps) for said in alarms.look(STEADY | {"loss": 0.1 + 0.01 * (-1) ** i})
    ]


@pytest.mark.parametrize(
    ("step", "name"),
    [
        ({"loss": 0.22}, "loss_spike"),
        ({"loss": -0.02}, "loss_spike"),
        ({"grad_norm": 10.1}, "gradient_spike"),
        ({"ratio": 2.1}, "ratio_limit"),
        ({"ratio": 0.4}, "ratio_limit"),
        ({"entropy": 0.039}, "entropy_share"),
        ({"length": 29.0}, "length_share"),
        ({}, ""),
        ({"loss": 0.18, "grad_norm": 9.9, "ratio": 1.9, "entropy": 0.041, "length": 31.0, "reward_std": 0.0}, ""),
    ],
)
def test_what_raises_an_alarm(step: dict, name: str) -> None:
    """After a window of steady steps; not before there is one, twice in a row, or when it is turned off."""
    alarms = Alarms(AlarmsConfig(window=8))
    assert ran(alarms, 7) == [] and alarms.look(STEADY | step) == []
    alarms = Alarms(AlarmsConfig(window=8))
    assert ran(alarms, 20) == []
    saved = json.loads(json.dumps(alarms.state()))
    said = alarms.look(STEADY | step)
    assert [s.endswith(f"(alarms.{name}).") for s in said] == [True] * bool(name)
    assert alarms.look(STEADY | step) == []  # it rings already
    continued = Alarms(AlarmsConfig(window=8))
    continued.restore(saved)
    assert continued.look(STEADY | step) == said
    if name:
        off = Alarms(AlarmsConfig(window=8, **{name: 0}))
        off.restore(saved)
        assert off.look(STEADY | step) == []


def test_a_reward_that_never_differs_is_an_alarm_from_the_first_step_on() -> None:
    alarms = Alarms(AlarmsConfig(window=8, constant_reward=3))
    dead = STEADY | {"reward_std": 0.0}
    assert [bool(alarms.look(dead)) for _ in range(5)] == [False, False, True, False, False]
    assert alarms.look(STEADY) == [] and alarms.constant == 0


def test_a_step_in_which_the_critic_learns_alone_is_no_part_of_a_curve() -> None:
    """It has no loss of the policy."""
    alarms = Alarms(AlarmsConfig())
    assert alarms.look({"reward_std": 0.0, "length": 3.0}) == []
    assert alarms.constant == 0 and alarms.recent == {name: [] for name in alarms.recent}
