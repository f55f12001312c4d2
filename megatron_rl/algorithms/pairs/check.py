"""Violations of the options of learning from pairs. Imports no torch."""

from megatron_rl.algorithms.pairs.config import PreferenceConfig, RewardModelConfig
from megatron_rl.data.sets.check import PAIRS, check_set
from megatron_rl.data.sets.config import SetConfig


def check_preference(config: PreferenceConfig) -> list[str]:
    """What is wrong between the options, one sentence each; empty when nothing is, or the stage has no steps."""
    if not config.steps:
        return []
    found = check_set(config.data, "preference.data", PAIRS)
    for role in ("positive", "negative"):
        folder = getattr(config, role)
        if config.loss == "cdpo" and not folder:
            found.append(
                f"preference.loss=cdpo needs preference.{role}, the folder of a model trained on "
                f"{'right' if role == 'positive' else 'wrong'} replies."
            )
        if config.loss != "cdpo" and folder:
            found.append(
                f"preference.{role} is given, but preference.loss={config.loss} asks no such model: leave it empty, or "
                "set preference.loss=cdpo."
            )
    return found


def check_reward_model(config: RewardModelConfig) -> list[str]:
    """As ``check_preference``."""
    if not config.steps:
        return []
    return check_set(config.data, "reward_model.data", PAIRS) + without_pairs(config.data, "reward_model")


def without_pairs(data: SetConfig, stage: str) -> list[str]:
    """A stage without rows of its own."""
    if data.path:
        return []
    return [
        f"{stage}.data.path is empty; set it to a file (.parquet .jsonl .json .csv) or a hub id with rows "
        f"{{prompt, chosen, rejected}}, or {stage}.steps=0."
    ]
