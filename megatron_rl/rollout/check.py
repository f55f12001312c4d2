"""Violations of the rollout's options. Imports no torch."""

from megatron_rl.rollout.config import RolloutConfig
from megatron_rl.rollout.sglang.check import check_sglang

ENGINES = ("embedded", "sglang")
AT_LEAST_ONE = ("prompts_per_step", "group_size", "max_new_tokens", "max_running", "threads")


def check_engines(config: RolloutConfig) -> list[str]:
    """What is wrong with which engines there are, and how many."""
    found = []
    if config.engine not in ENGINES:
        found.append(f"rollout.engine is {config.engine!r}; it must be {' or '.join(ENGINES)}.")
    if config.engines < 1:
        found.append(f"rollout.engines is {config.engines}; it must be at least 1.")
    return found


def check_rollout(config: RolloutConfig) -> list[str]:
    """Every violation, one sentence each with the allowed values; empty when there is none."""
    found = check_engines(config)
    if config.engine == "sglang":
        found += check_sglang(config)
    if config.staleness < 0:
        found.append(f"rollout.staleness is {config.staleness}; it must be 0 (synchronous) or more.")
    if config.in_flight and (not config.staleness or config.engine != "sglang"):
        found.append("rollout.in_flight=true needs rollout.staleness of 1 or more and rollout.engine=sglang.")
    if config.staleness and config.engine == "sglang" and config.sglang.colocated:
        found.append("rollout.sglang.colocated=true needs rollout.staleness=0: a GPU cannot do both at once.")
    for key in AT_LEAST_ONE:
        if getattr(config, key) < 1:
            found.append(f"rollout.{key} is {getattr(config, key)!r}; it must be at least 1.")
    # log-probs are those of the scaled distribution: at 0 it has one token, and its gradient is nothing
    if not 0 < config.temperature < float("inf"):
        found.append(f"rollout.temperature is {config.temperature}; it must be above 0.")
    if not 0 < config.top_p <= 1:
        found.append(f"rollout.top_p is {config.top_p}; it must be above 0 and at most 1.")
    if config.sglang.routing_replay and config.engine == "embedded":
        found.append(
            "rollout.sglang.routing_replay needs rollout.engine=sglang: the embedded engine does not say which experts "
            "it chose."
        )
    if config.top_k < 0:
        found.append(f"rollout.top_k is {config.top_k}; it must be 0 (all tokens) or more.")
    return found
