"""Violations of the options of evaluation. Imports no torch."""

from megatron_rl.evaluation.config import EvaluationConfig


def check_evaluation(evaluation: EvaluationConfig, held_out: int | None) -> list[str]:
    """What is wrong beside the values of single options, one sentence each; empty when nothing is.

    ``held_out``: how many questions the task keeps for evaluation; None where only its data can tell.
    """
    found = []
    if held_out and evaluation.prompts > held_out:
        found.append(
            f"evaluation.prompts is {evaluation.prompts}; the task keeps {held_out} held-out questions, so it must be "
            f"{held_out} or less."
        )
    if held_out == 0 and evaluation.every > 0:
        found.append(
            f"evaluation.every is {evaluation.every}, but data.eval_path is empty: there is nothing to evaluate on. "
            "Set data.eval_path, or evaluation.every=0."
        )
    return found
