"""A model and rows of the user's in place of what a recipe brings."""

import json
from pathlib import Path

import pytest

from megatron_rl.data.registry import make_task
from megatron_rl.data.tokenizer import load_tokenizer
from megatron_rl.settings.check import check
from megatron_rl.settings.foresight.forecast import foresee
from megatron_rl.settings.foresight.hardware import on_cpu
from megatron_rl.settings.load import load
from tools.make_tiny_model import main as make_tiny_model

pytestmark = pytest.mark.usefixtures("forked_look")


def test_a_model_of_the_users_stands_in_place_of_a_random_one() -> None:
    config, problems = load("one_shot.tiny", ["model.path=/some/model"])
    assert not problems and (config.model.path, config.model.architecture) == ("/some/model", {})
    assert load("one_shot.tiny", ["model.path="])[0].model.architecture


def test_missing_steps_are_told_beside_a_template_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"question": "Two?", "answer": "2"}\n' * 4)
    make_tiny_model([str(tmp_path / "rows.jsonl"), str(tmp_path / "tiny"), "--vocabulary", "300"])
    paths = [f"model.path={tmp_path / 'tiny'}", f"data.path={tmp_path / 'rows.jsonl'}"]
    config, _ = load("seele.tiny", [*paths, "data.template={questio}"])
    template, steps = check(config).problems
    assert "has no column 'questio' (data.template)" in template
    assert "training example train/1 has none: a task gives them as a list of texts, `steps`" in steps


def test_a_suite_that_is_trained_on_is_told(tmp_path: Path) -> None:
    rows = [{"question": f"{' '.join(f'word{i}and{j}' for j in range(16))}?", "answer": f"#### {i}"} for i in range(8)]
    for name, some in (("train", rows[2:]), ("test", rows[:4])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    make_tiny_model([str(train), str(tmp_path / "tiny"), "--vocabulary", "300"])
    own = ["data.task=math_problems", f"data.path={train}", f"model.path={tmp_path / 'tiny'}", "data.eval_path="]
    own += ["data.max_prompt_tokens=200", "sft.steps=0"]
    config, problems = load("one_shot.tiny", [*own, f"evaluation.suites={{gsm8k: {{path: {test}}}}}"])
    found = check(config)
    assert problems + found.problems == []
    (said,) = found.warnings
    assert said.startswith(f"2 of the 4 questions of the suite gsm8k stand in data.path={train} (half of their 13-")


def test_predictions_are_of_prompts_as_long_as_those_of_the_data(tmp_path: Path) -> None:
    rows = [{"question": " ".join(["two"] * (i % 7 + 1)) + "?", "answer": "2"} for i in range(200)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    make_tiny_model([str(tmp_path / "rows.jsonl"), str(tmp_path / "tiny"), "--vocabulary", "300"])
    paths = [f"model.path={tmp_path / 'tiny'}", f"data.path={tmp_path / 'rows.jsonl'}", "data.task=prompt_answer"]
    config, _ = load("social_r1.tiny_rows", [*paths, "rewards.terms={social_r1: null, exact_answer: 1}"])
    found, tokenizer = check(config), load_tokenizer(tmp_path / "tiny")
    assert found.problems == []
    train = make_task(config.data, 0, tokenizer).train
    some = [len(tokenizer.encode(train[i].prompt, add_special_tokens=False)) for i in range(0, 3 * 64, 3)]
    assert found.prompt == round(sum(some) / 64) and min(some) < max(some)
    hf_config = json.loads((tmp_path / "tiny" / "config.json").read_text())
    known, unknown = (foresee(config, hf_config, on_cpu(1e10), prompt=length) for length in (found.prompt, 0.0))
    assert known.load.prompt == found.prompt < unknown.load.prompt == config.data.max_prompt_tokens / 2
    assert known.step is not None and unknown.step is not None and known.step.step < unknown.step.step
    assert known.peak == unknown.peak  # of memory the longest is told
