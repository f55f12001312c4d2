"""Options of evaluation that cannot work."""

from megatron_rl.data.config import DataConfig
from megatron_rl.data.registry import held_out
from megatron_rl.evaluation.check import check_evaluation
from megatron_rl.evaluation.config import EvaluationConfig


def found(data: DataConfig | None = None, **options) -> list[str]:
    return check_evaluation(EvaluationConfig(**options), held_out(data or DataConfig()))


def test_nothing_to_say():
    assert found() == []
    assert found(DataConfig(task="false_belief")) == []
    assert found(DataConfig(path="x.jsonl", eval_path="y.jsonl"), every=5, prompts=10**6) == []
    assert found(DataConfig(task="no.such.task"), every=5) == []


def test_more_prompts_than_held_out_questions():
    (said,) = found(DataConfig(task="false_belief"), prompts=513)
    assert "the task keeps 512 held-out questions, so it must be 512 or less." in said


def test_periodic_evaluation_needs_a_file():
    for task in ("multiple_choice", "prompt_answer"):
        assert "data.eval_path is empty" in found(DataConfig(task=task, path="x.jsonl"), every=5)[0]
