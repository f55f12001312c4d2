"""Violations of the options of the objective. Imports no torch, but for a user's own algorithm."""

from megatron_rl.algorithms.config import AlgorithmConfig
from megatron_rl.algorithms.published import GROUP_NORMALISED, PUBLISHED, settled
from megatron_rl.algorithms.registry import asked, asked_of
from megatron_rl.errors import InputError


def check_algorithm(config: AlgorithmConfig) -> list[str]:
    """What is wrong between the options, one sentence each; empty when nothing is."""
    found = []
    try:
        asks = "teacher" in asked(config).needs
    except InputError as error:
        found.append(str(error))
    else:
        if asks and not config.teacher:
            found.append(
                f"algorithm.name={config.name} learns from a teacher: set algorithm.teacher to its Hugging Face folder."
            )
        elif config.teacher and not asks:
            found.append(f"algorithm.teacher is given, and algorithm.name={config.name} has none: leave it empty.")
    return found + _credit(config) + _bounds(config) + _correction(config) + _reference(config)


def _credit(config: AlgorithmConfig) -> list[str]:
    found = []
    if config.reward_normalization == "each" and config.name in PUBLISHED and config.name not in GROUP_NORMALISED:
        found.append(
            f"algorithm.reward_normalization=each divides by the standard deviation of each reward's group, and "
            f"algorithm.name={config.name} does not: use {', '.join(GROUP_NORMALISED)}, or leave it at sum."
        )
    if config.kl_in == "reward" and not config.uses_reference:
        found.append(
            "algorithm.kl_in=reward subtracts algorithm.kl_coef x KL from the reward, and algorithm.kl_coef is 0: set "
            "it, or leave algorithm.kl_in at auto."
        )
    of_rewards = settled(config).kl_in == "reward" and asked_of(config).grouped
    if of_rewards and config.truncated == "mask":
        found.append(
            "algorithm.truncated=mask leaves out the KL of completions that were cut off, and with the KL in the "
            "reward their group is compared by it: set algorithm.kl_in=loss, or algorithm.truncated=keep."
        )
    for source, coef in config.kl_coefs.items():
        if not 0 <= coef < float("inf"):
            found.append(f"algorithm.kl_coefs.{source} is {coef}; it must be a finite number, 0 or more.")
    return found


def _bounds(config: AlgorithmConfig) -> list[str]:
    found = []
    if 0 < config.dual_clip <= 1:
        found.append(f"algorithm.dual_clip is {config.dual_clip}; it must be above 1, or 0 for none.")
    if config.dual_clip and config.surrogate not in ("auto", "clip"):
        found.append(
            f"algorithm.dual_clip bounds surrogate clip, and algorithm.surrogate is {config.surrogate}: set it to 0."
        )
    if config.surrogate == "policy_gradient" and config.minibatches * config.epochs > 1:
        found.append(
            "algorithm.surrogate=policy_gradient is right for one update per rollout alone, and there are "
            f"{config.minibatches * config.epochs} (minibatches x epochs): use clip, or set both to 1."
        )
    if config.aggregation_length and config.aggregation not in ("auto", "seq-mean-token-sum-norm"):
        found.append(
            "algorithm.aggregation_length is for algorithm.aggregation=seq-mean-token-sum-norm, and that is "
            f"{config.aggregation}: leave it 0."
        )
    return found


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


def _reference(config: AlgorithmConfig) -> list[str]:
    found, published = [], config.name in PUBLISHED
    moves = {"reference_ema": config.reference_ema, "reference_every": config.reference_every}
    said = " and ".join(f"algorithm.{key}={value}" for key, value in moves.items() if value)
    if all(moves.values()):
        found.append(f"{said} are two ways of keeping the reference near the policy: set one of them to 0.")
    if said and published and not config.uses_reference:
        found.append(f"{said} is for a reference policy, and there is none: set algorithm.kl_coef, or leave it at 0.")
    return found
