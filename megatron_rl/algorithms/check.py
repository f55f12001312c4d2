"""Violations of the options of the objective and of the warm start. Imports no torch."""

from math import inf, isfinite

from megatron_rl.algorithms.config import AlgorithmConfig, SFTConfig
from megatron_rl.rollout.config import RolloutConfig

CHOICES = {
    "advantage": ("grpo",),
    "std": ("sample", "population"),
    "aggregation": ("token-mean", "seq-mean-token-mean"),
    "kl_estimator": ("k1", "k2", "k3"),
    "correction": ("none", "truncated", "masked"),
    "correction_level": ("token", "sequence", "geometric"),
    "mismatch_action": ("warn", "stop"),
}
RANGES: dict[str, tuple[float, float]] = {  # key: least and most, both allowed
    "clip_low": (0, 1),
    "clip_high": (0, inf),
    "kl_coef": (0, inf),
    "entropy_coef": (-inf, inf),  # negative: a penalty
    "minibatches": (1, inf),
    "epochs": (1, inf),
    "correction_low": (0, 1),  # a ratio of 1, the on-policy one, lies between the bounds
    "correction_high": (1, inf),
    "mismatch_limit": (0, inf),
}
SFT_RANGES: dict[str, tuple[float, float]] = {"steps": (0, inf), "batch_size": (1, inf), "prompt_weight": (0, inf)}


def check_algorithm(config: AlgorithmConfig, rollout: RolloutConfig) -> list[str]:
    """Every violation, one sentence each with the allowed values; empty when there is none."""
    found = []
    for key, allowed in CHOICES.items():
        if getattr(config, key) not in allowed:
            found.append(f"algorithm.{key} is {getattr(config, key)!r}; it must be {' or '.join(allowed)}.")
    if not 0 < config.std_eps < inf:
        found.append(f"algorithm.std_eps is {config.std_eps}; it must be above 0.")
    found += _out_of_range("algorithm", config, RANGES)
    if config.advantage == "grpo" and rollout.group_size < 2:
        found.append(
            f"rollout.group_size is {rollout.group_size}; algorithm.advantage=grpo compares the completions of one "
            "prompt and needs at least 2."
        )
    if config.minibatches >= 1 and rollout.prompts_per_step % config.minibatches:
        divisors = [n for n in range(1, rollout.prompts_per_step + 1) if rollout.prompts_per_step % n == 0]
        found.append(
            f"algorithm.minibatches is {config.minibatches}, which does not divide rollout.prompts_per_step "
            f"({rollout.prompts_per_step}); it can be {', '.join(map(str, divisors))}."
        )
    return found + _correction(config)


def _correction(config: AlgorithmConfig) -> list[str]:
    found = []
    if config.correction_low == config.correction_high:
        found.append(
            f"algorithm.correction_low and algorithm.correction_high are both {config.correction_low}: no importance "
            "ratio lies between them; lower the first or raise the second."
        )
    if config.correction == "truncated" and config.correction_level == "geometric":
        found.append(
            "algorithm.correction_level=geometric only masks sequences; with algorithm.correction=truncated it must be "
            "token or sequence."
        )
    if config.bypass and config.correction != "none":
        found.append(
            f"algorithm.bypass=true makes the engine's log-probs the old ones, which leaves nothing for "
            f"algorithm.correction={config.correction} to correct; set one of them to false or none."
        )
    return found


def check_sft(config: SFTConfig) -> list[str]:
    """Every violation of the warm start's options, one sentence each."""
    return _out_of_range("sft", config, SFT_RANGES)


def _out_of_range(group: str, config: AlgorithmConfig | SFTConfig, ranges: dict[str, tuple[float, float]]) -> list[str]:
    found = []
    for key, (least, most) in ranges.items():
        value = getattr(config, key)
        if isfinite(value) and least <= value <= most:
            continue
        if most < inf:
            allowed = f"between {least} and {most}"
        else:
            allowed = f"{least} or more" if least > -inf else "a finite number"
        found.append(f"{group}.{key} is {value}; it must be {allowed}.")
    return found
