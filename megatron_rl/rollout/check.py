"""Violations of the rollout's options. Imports no torch."""

from megatron_rl.rollout.config import RolloutConfig
from megatron_rl.rollout.sglang.check import check_sglang


def check_rollout(config: RolloutConfig) -> list[str]:
    """What is wrong between the options, one sentence each; empty when nothing is."""
    found = check_sglang(config) if config.engine == "sglang" else []
    if config.in_flight and (not config.staleness or config.engine != "sglang"):
        found.append("rollout.in_flight=true needs rollout.staleness of 1 or more and rollout.engine=sglang.")
    if config.staleness and config.engine == "sglang" and config.sglang.colocated:
        found.append("rollout.sglang.colocated=true needs rollout.staleness=0: a GPU cannot do both at once.")
    if config.sglang.routing_replay and config.engine == "embedded":
        found.append(
            "rollout.sglang.routing_replay needs rollout.engine=sglang: the embedded engine does not say which experts "
            "it chose."
        )
    return found
