"""Violations of the rollout's options. Imports no torch."""

from megatron_rl.rollout.config import DynamicConfig, HintsConfig, RolloutConfig
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
    return found + _hints(config) + _dynamic(config)


def _hints(config: RolloutConfig) -> list[str]:
    """What hinted rollouts need, and options that would do nothing without them."""
    hints, found = config.hints, []
    if config.strategy != "hinted":
        default = HintsConfig()
        return [
            f"rollout.hints.{name}={value} does nothing without rollout.strategy=hinted: set that, or leave it at "
            f"{getattr(default, name)}."
            for name, value in vars(hints).items()
            if value != getattr(default, name)
        ]
    if hints.rounds >= 1 and config.group_size % hints.rounds:
        found.append(
            f"rollout.group_size is {config.group_size}, which rollout.hints.rounds={hints.rounds} does not divide: "
            f"every round has as many completions; take {-(-config.group_size // hints.rounds) * hints.rounds}."
        )
    if config.staleness:
        found.append(
            "rollout.strategy=hinted needs rollout.staleness=0: the rates that a problem's hints begin with are those "
            "that its last visit left."
        )
    return found


def _dynamic(config: RolloutConfig) -> list[str]:
    """Dynamic sampling's own options, and what it needs of the others."""
    dynamic, found = config.dynamic, []
    most = config.round_size * dynamic.max_batches
    if dynamic.filter and config.group_size == 1:
        found.append(
            "rollout.dynamic.filter=true leaves out groups whose rewards are all equal, which those of one completion "
            "are: set rollout.group_size to 2 or more."
        )
    if dynamic.filter and most < config.prompts_per_step:
        found.append(
            f"rollout.dynamic: {dynamic.max_batches} rounds (max_batches) of {config.round_size} prompts (batch) are "
            f"{most}, fewer than rollout.prompts_per_step ({config.prompts_per_step}): raise one of them."
        )
    if not dynamic.filter:
        default = DynamicConfig()
        found += [
            f"rollout.dynamic.{name}={getattr(dynamic, name)} does nothing without rollout.dynamic.filter=true: set "
            f"that, or leave it at {getattr(default, name)}."
            for name in ("batch", "max_batches", "at_cap", "max_age")
            if getattr(dynamic, name) != getattr(default, name)
        ]
    return found
