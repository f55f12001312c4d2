"""Recipes of imitation and pairs, of generated sums and of files: InfiAlign, SuperCorrect and critical tokens."""

import json
from pathlib import Path

import pytest

from megatron_rl.resharding.folders.fingerprint import fingerprint
from megatron_rl.tracking.run_folder import RunFolder
from recipes.supercorrect import TARGET
from tests.runs.test_seele_run import train
from tests.runs.test_train import rows
from tools.make_tiny_model import main as make_tiny_model

ROLES = {"positive": "right", "negative": "wrong"}


def write(file: Path, lines: list[dict]) -> str:
    file.write_text("\n".join(map(json.dumps, lines)))
    return str(file)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Solutions, thoughts, pairs of whole replies, pairs of steps, right and wrong solutions; and a model for them."""
    here = tmp_path_factory.mktemp("pairs")
    made: dict[str, list[dict]] = {name: [] for name in ("solutions", "thoughts", "pairs", "steps", "right", "wrong")}
    for i in range(24):
        ask, good, bad = {"prompt": f"What is {i} + 2?"}, f"{i} + 2 = {i + 2}, sure", f"{i} + 2 = {i + 3}, perhaps"
        thought = TARGET.format(step=good, key="add two", general="a + 2", answer=i + 2)
        made["solutions"].append(ask | {"target": f"{good}, so \\boxed{{{i + 2}}}."})
        made["thoughts"].append(ask | {"target": thought})
        made["pairs"].append(ask | {"chosen": good, "rejected": bad})
        made["steps"].append(ask | {"prefix": "<Step> ", "chosen": f"{good} </Step>", "rejected": f"{bad} </Step>"})
        made["right"].append(ask | {"target": good})
        made["wrong"].append(ask | {"target": bad})
    for name, lines in made.items():
        write(here / f"{name}.jsonl", lines)
    make_tiny_model([str(here / "thoughts.jsonl"), str(here / "tiny"), "--vocabulary", "320"])
    return here


SHORT = ["sft.steps=20", "sft.batch_size=8", "preference.steps=20", "preference.batch_size=4", "evaluation.prompts=0"]
FAST = ["sft_optimizer.warmup_steps=2", "preference_optimizer.lr=1e-3", "preference_optimizer.warmup_steps=2"]


@pytest.mark.parametrize(
    ("recipe", "to_imitate", "to_compare"),
    [("infialign.tiny", "solutions", "pairs"), ("supercorrect.tiny", "thoughts", "steps")],
)
def test_rows_of_files(files: Path, recipe: str, to_imitate: str, to_compare: str) -> None:
    """A model and rows of the user's in place of the generated ones."""
    train(
        recipe,
        files,
        f"model.path={files / 'tiny'}",
        f"sft.data.path={files / to_imitate}.jsonl",
        f"preference.data.path={files / to_compare}.jsonl",
        f"run.name={to_imitate}",
        *SHORT,
        *FAST,
    )
    run = RunFolder(files / to_imitate)
    found = rows(run)
    done = [(stage, step) for stage in ("sft", "preference") for step in range(1, 21)]
    assert [(row["stage"], row["step"]) for row in found] == done
    assert found[19]["loss"] < 0.9 * found[0]["loss"]
    assert found[20]["loss"] == pytest.approx(0.693147, abs=1e-6)  # it is its own reference
    assert found[39]["pair_margin"] > 0 and found[39]["pair_accuracy"] > 0.5
    assert fingerprint(run.export) != fingerprint(run.left_by("sft"))


@pytest.mark.parametrize("recipe", ["infialign.tiny", "supercorrect.tiny"])
def test_generated_sums(tmp_path: Path, recipe: str) -> None:
    train(recipe, tmp_path, "run.name=sums", *SHORT, *FAST)
    found = rows(RunFolder(tmp_path / "sums"))
    assert [row["stage"] for row in found] == ["sft"] * 20 + ["preference"] * 20
    assert found[20]["loss"] == pytest.approx(0.693147, abs=1e-6)
    assert found[39]["loss"] < found[20]["loss"] and found[39]["pair_margin"] > 0


def test_critical_tokens_in_three_runs(tmp_path: Path) -> None:
    for name, slip in (("right", 0.0), ("wrong", 0.9)):
        few = ["sft.steps=60", "sft.batch_size=8", f"data.sums.slip={slip}", f"run.name={name}"]
        train("cdpo.tiny_contrast", tmp_path, *few)
    models = [f"preference.{role}={tmp_path / name / 'hf'}" for role, name in ROLES.items()]
    train("cdpo.tiny", tmp_path, *models, "run.name=critical", *SHORT, *FAST)
    found = [row for row in rows(RunFolder(tmp_path / "critical")) if row["stage"] == "preference"]
    assert len(found) == 20 and found[0]["loss"] == pytest.approx(0.693147, abs=1e-6)
    assert found[19]["loss"] < found[0]["loss"] and all(0 < row["critical"] < 1 for row in found)
    assert fingerprint(tmp_path / "right" / "hf") != fingerprint(tmp_path / "wrong" / "hf")


def test_a_task_without_pairs_is_refused(files: Path) -> None:
    given = [f"model.path={files / 'tiny'}", f"sft.data.path={files / 'right'}.jsonl", "run.name=none"]
    other = ["data.task=false_belief", "data.max_prompt_tokens=64"]
    said = train("infialign.tiny", files, *given, *SHORT, *other, status=2)
    assert "preference.data.path is empty, and data.task=false_belief has no pairs" in said
    said = train("infialign.tiny", files, *given, *SHORT, "data.task=math_problems", status=2)
    assert "preference.data.path is empty; set it to a file" in said
