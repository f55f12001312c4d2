"""Learning-rate schedules at known points."""

import pytest

from megatron_rl.actor.config import OptimizerConfig
from megatron_rl.actor.schedule import learning_rate


def test_warmup_then_constant() -> None:
    config = OptimizerConfig(lr=2.0, warmup_steps=4)
    assert [learning_rate(config, s, 100) for s in (0, 1, 3, 4, 99)] == [0.5, 1.0, 2.0, 2.0, 2.0]


@pytest.mark.parametrize(("decay", "middle"), [("linear", 0.55), ("cosine", 0.55)])
def test_decays_to_the_ratio(decay: str, middle: float) -> None:
    config = OptimizerConfig(lr=1.0, warmup_steps=10, decay=decay, min_lr_ratio=0.1)
    assert learning_rate(config, 10, 110) == 1.0
    assert learning_rate(config, 60, 110) == pytest.approx(middle)
    assert learning_rate(config, 110, 110) == pytest.approx(0.1)
    assert learning_rate(config, 500, 110) == pytest.approx(0.1)
    quarter = {"linear": 0.775, "cosine": 0.1 + 0.9 * 0.5 * (1 + 2**-0.5)}[decay]
    assert learning_rate(config, 35, 110) == pytest.approx(quarter)
