"""Recipes of imitation and pairs, from files that are written here: InfiAlign, SuperCorrect and critical tokens."""

import json
from pathlib import Path

import pytest

from megatron_rl.resharding.folders.fingerprint import fingerprint
from megatron_rl.tracking.run_folder import RunFolder
from recipes.supercorrect import TARGET
from tests.runs.test_seele_run import train
from tests.runs.test_train import rows
from tools.make_tiny_model import main as make_tiny_model


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


@pytest.mark.parametrize(
    ("recipe", "to_imitate", "to_compare"),
    [("infialign.tiny", "solutions", "pairs"), ("supercorrect.tiny", "thoughts", "steps")],
)
def test_imitation_then_pairs(files: Path, recipe: str, to_imitate: str, to_compare: str) -> None:
    train(
        recipe,
        files,
        f"model.path={files / 'tiny'}",
        f"sft.data.path={files / to_imitate}.jsonl",
        f"preference.data.path={files / to_compare}.jsonl",
        f"run.name={to_imitate}",
    )
    run = RunFolder(files / to_imitate)
    found = rows(run)
    done = [(stage, step) for stage in ("sft", "preference") for step in range(1, 21)]
    assert [(row["stage"], row["step"]) for row in found] == done
    assert found[19]["loss"] < 0.9 * found[0]["loss"]
    assert found[20]["loss"] == pytest.approx(0.693147, abs=1e-6)  # it is its own reference
    assert found[39]["pair_margin"] > 0 and found[39]["pair_accuracy"] > 0.5
    assert fingerprint(run.export) != fingerprint(run.left_by("sft"))


def test_critical_tokens_in_three_runs(files: Path) -> None:
    for name in ("right", "wrong"):
        options = [f"model.path={files / 'tiny'}", f"sft.data.path={files / name}.jsonl", f"run.name={name}"]
        train("cdpo.tiny_contrast", files, *options)
    train(
        "cdpo.tiny",
        files,
        f"model.path={files / 'tiny'}",
        f"preference.data.path={files / 'pairs'}.jsonl",
        f"preference.positive={files / 'right' / 'hf'}",
        f"preference.negative={files / 'wrong' / 'hf'}",
        "run.name=critical",
    )
    found = rows(RunFolder(files / "critical"))
    assert [row["stage"] for row in found] == ["preference"] * 20
    assert found[0]["loss"] == pytest.approx(0.693147, abs=1e-6) and found[19]["loss"] < found[0]["loss"]
    assert all(0 < row["critical"] < 1 for row in found)
    assert fingerprint(files / "right" / "hf") != fingerprint(files / "wrong" / "hf")
