"""What must hold of a step: agreement of engine and actor."""

import pytest

from megatron_rl.algorithms.config import AlgorithmConfig
from megatron_rl.errors import RunError
from megatron_rl.training.controller import Elsewhere
from megatron_rl.training.guard import require_agreement
from megatron_rl.training.progress import Progress


class Heard(Elsewhere):
    """A controller of which the warnings are kept."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def warn(self, text: str) -> None:
        self.said.append(text)


def test_an_engine_that_disagrees_can_end_the_run() -> None:
    """Every rank raises what the command line prints; at the limit itself, and without one, nothing happens."""
    config = AlgorithmConfig(mismatch_limit=0.05, mismatch_action="stop")
    metrics = {"engine_kl_k3": 0.0625, "p99_logprob_gap": 1.5, "max_logprob_gap": 4.0}
    at, heard = Progress("rl", step=7), Heard()
    with pytest.raises(RunError, match=r"Step 7 stopped the run .*engine_kl_k3=0.0625 nats .*limit is 0.05"):
        require_agreement(metrics, Elsewhere(), at, config)
    config.mismatch_action = "warn"
    require_agreement(metrics, Elsewhere(), at, config)  # rank 0 alone says it
    require_agreement(metrics, heard, at, config)
    assert heard.said[0].startswith("step 7: the engine's log-probs differ from the actor's by engine_kl_k3=0.0625")
    config.mismatch_action = "stop"
    require_agreement(metrics | {"engine_kl_k3": 0.05}, heard, at, config)
    config.mismatch_limit = 0.0
    require_agreement(metrics, heard, at, config)
    assert len(heard.said) == 1
