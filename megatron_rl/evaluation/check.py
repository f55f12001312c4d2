"""Violations of the options of evaluation. Imports no torch."""

from megatron_rl.data.config import DataConfig
from megatron_rl.data.false_belief import HELDOUT
from megatron_rl.evaluation.config import EvaluationConfig


def check_evaluation(evaluation: EvaluationConfig, data: DataConfig) -> list[str]:
    """What is wrong between the options, one sentence each; empty when nothing is."""
    found = []
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
