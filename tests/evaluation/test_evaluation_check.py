"""Options of evaluation that cannot work."""

from megatron_rl.config import Config
from megatron_rl.data.config import DataConfig
from megatron_rl.evaluation.check import check_evaluation
from megatron_rl.evaluation.config import EvaluationConfig


def test_nothing_to_say():
    assert check_evaluation(Config()) == []
    assert check_evaluation(Config(data=DataConfig(task="false_belief"))) == []


def test_every_violation_is_found_at_once():
    found = check_evaluation(Config(evaluation=EvaluationConfig(every=-1, prompts=0)))
    assert [f.split()[0] for f in found] == ["evaluation.every", "evaluation.prompts"]


def test_more_prompts_than_held_out_questions():
    config = Config(data=DataConfig(task="false_belief"), evaluation=EvaluationConfig(prompts=513))
    assert "must be 512 or less" in check_evaluation(config)[0]


def test_periodic_evaluation_needs_a_file():
    config = Config(data=DataConfig(path="x.jsonl"), evaluation=EvaluationConfig(every=5))
    assert "data.eval_path is empty" in check_evaluation(config)[0]
    config.data.eval_path = "y.jsonl"
    assert check_evaluation(config) == []
