"""Violations of the options of evaluation. Imports no torch."""

from megatron_rl.evaluation.config import EvaluationConfig
from megatron_rl.evaluation.registry import suite_config


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


def check_suites(evaluation: EvaluationConfig, reward_model: bool) -> list[str]:
    """What is wrong with evaluation.suites, their data included as far as names tell.

    ``reward_model``: whether the run trains one, which answers nothing.
    """
    found = [
        f"evaluation.suites: {said}"
        for name, options in evaluation.suites.items()
        for said in suite_config(name, options)[1]
    ]
    if evaluation.suites_every and not evaluation.suites:
        found.append(f"evaluation.suites_every is {evaluation.suites_every}, but evaluation.suites names none.")
    if evaluation.suites and reward_model:
        found.append(
            "evaluation.suites asks a language model, and reward_model.steps trains a reward model: leave it empty."
        )
    return found
