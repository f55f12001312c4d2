"""Options of evaluation that cannot work."""

from megatron_rl.data.config import DataConfig
from megatron_rl.evaluation.check import check_evaluation
from megatron_rl.evaluation.config import EvaluationConfig


def test_nothing_to_say():
    assert check_evaluation(EvaluationConfig(), DataConfig()) == []
    assert check_evaluation(EvaluationConfig(), DataConfig(task="false_belief")) == []


def test_more_prompts_than_held_out_questions():
    found = check_evaluation(EvaluationConfig(prompts=513), DataConfig(task="false_belief"))
    assert "must be 512 or less" in found[0]


def test_periodic_evaluation_needs_a_file():
    evaluation, data = EvaluationConfig(every=5), DataConfig(path="x.jsonl")
    assert "data.eval_path is empty" in check_evaluation(evaluation, data)[0]
    data.eval_path = "y.jsonl"
    assert check_evaluation(evaluation, data) == []
