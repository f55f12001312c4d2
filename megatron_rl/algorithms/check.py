"""Violations of the options of the objective. Imports no torch."""

from megatron_rl.algorithms.config import AlgorithmConfig


def check_algorithm(config: AlgorithmConfig) -> list[str]:
    """What is wrong between the options, one sentence each; empty when nothing is."""
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
