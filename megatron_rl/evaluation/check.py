"""Violations of the options of evaluation. Imports no torch."""

from megatron_rl.config import Config
from megatron_rl.data.false_belief import HELDOUT


def check_evaluation(config: Config) -> list[str]:
    """Every violation, one sentence each; empty when there is none."""
    evaluation, data = config.evaluation, config.data
    found = []
    if evaluation.every < 0:
        found.append(f"evaluation.every is {evaluation.every}; it must be 0 (stage boundaries only) or more.")
    if evaluation.prompts < 1:
        found.append(f"evaluation.prompts is {evaluation.prompts}; it must be 1 or more.")
    if data.task == "false_belief" and evaluation.prompts > HELDOUT:
        found.append(
            f"evaluation.prompts is {evaluation.prompts}; data.task=false_belief keeps {HELDOUT} held-out questions, "
            f"so it must be {HELDOUT} or less."
        )
    if data.task == "multiple_choice" and evaluation.every > 0 and not data.eval_path:
        found.append(
            f"evaluation.every is {evaluation.every}, but data.eval_path is empty: there is nothing to evaluate on. "
            "Set data.eval_path, or evaluation.every=0."
        )
    return found
