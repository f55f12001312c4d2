"""A model and rows of the user's in place of what a recipe brings."""

from pathlib import Path

from megatron_rl.settings.check import check
from megatron_rl.settings.load import load
from tools.make_tiny_model import main as make_tiny_model


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
