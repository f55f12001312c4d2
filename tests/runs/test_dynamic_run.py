"""Whole runs with dynamic sampling: continued with groups that wait, of several tasks, with rollouts made ahead."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from megatron_rl.data.task import sample_of
from megatron_rl.data.tasks.false_belief import false_belief
from megatron_rl.resharding.folders.fingerprint import fingerprint
from megatron_rl.rewards.overlong import overlong
from megatron_rl.rollout.dynamic.stored import FILE
from megatron_rl.tracking.names import find
from megatron_rl.tracking.run_folder import RunFolder
from tests.conftest import PATIENCE
from tests.runs.coin import coin
from tests.runs.test_train import rows, start

GROUP, PROMPTS = 3, 4
OPTIONS = [
    *("sft.steps=0", "run.steps=6", "run.save_every=1", "run.keep=9", "evaluation.greedy=false", "algorithm.epochs=1"),
    *(
        "rewards.terms={answer_in_format: null, format: null, tests.runs.coin.coin: 2}",
        "rewards.overlong_buffer=40",
    ),
    *(f"rollout.group_size={GROUP}", f"rollout.prompts_per_step={PROMPTS}", "tracking.completions=12"),
    *("rollout.dynamic.filter=true", "rollout.dynamic.batch=9", "algorithm.mismatch_limit=0", "run.export=true"),
    "data.mixture={a: {limit: 40, weight: 3, curriculum: {by: accuracy, low: 0.4, explore: 0.5}}, b: {limit: 9}}",
]


def finish(folder: Path, name: str, *more: str) -> tuple[RunFolder, str]:
    process = start(folder, name, *OPTIONS, *more)
    out, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, error
    return RunFolder(folder / name), out


def completions(run: RunFolder) -> list[dict[str, Any]]:
    found = map(json.loads, run.completions_file.read_text().splitlines())
    return [row for row in found if "evaluation" not in row]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return finish(tmp_path_factory.mktemp("runs"), "whole")[0]


def test_only_groups_that_differ_make_a_batch_and_none_is_lost(whole: RunFolder) -> None:
    steps = [row for row in rows(whole) if row["stage"] == "rl"]
    assert len(steps) == 6 and all(row["equal_groups"] == 0 for row in steps)
    waiting = 0
    for row in steps:
        assert row["groups_drawn"] == 9 * row["rounds"]
        kept = row["groups_drawn"] - row["groups_dropped"]
        assert waiting + kept - PROMPTS - row["groups_expired"] == row["groups_carried"]
        waiting = row["groups_carried"]
    assert any(row["rounds"] == 0 for row in steps) and any(row["groups_dropped"] for row in steps)
    assert max(row["staleness_max"] for row in steps) in (1, 2)
    assert all(find(name) for row in steps for name in row)
    versions = [row["weight_versions"][0][0] for row in completions(whole)]
    assert min(v - (row["step"] - 1) for v, row in zip(versions, completions(whole), strict=True)) >= -2


def test_every_reward_stands_beside_its_completion(whole: RunFolder) -> None:
    """Whatever was left out and carried over before: the numbers are computed again from the text beside them."""
    found = completions(whole)
    assert len(found) == 6 * PROMPTS * GROUP
    train = false_belief(0, 40).train
    for row in found:
        example = train[int(row["id"].rpartition("/")[2])]
        assert row["id"].startswith(("a/train/", "b/train/"))
        assert (row["prompt"], row["answer"]) == (example.prompt, example.answer)
        assert row["components"]["tests.runs.coin.coin/score"] == coin(sample_of(example, row["response"]))
        length = sum(count for _, count in row["weight_versions"])
        assert row["components"]["overlong/score"] == overlong(length, 48, 40)
        assert row["reward"] == pytest.approx(
            2 * row["components"]["tests.runs.coin.coin/score"] + row["components"]["overlong/score"]
        )
    for first in range(0, len(found), GROUP):
        group = found[first : first + GROUP]
        assert len({(row["step"], row["id"]) for row in group}) == 1
        mean = sum(row["reward"] for row in group) / GROUP
        assert all((row["advantage"] > 0) == (row["reward"] > mean) for row in group)
    assert {row["id"][0] for row in found} == {"a", "b"}


def test_continued_it_ends_as_if_it_had_not_stopped(whole: RunFolder) -> None:
    """From the checkpoint of a step that left groups waiting."""
    carried = [row["step"] for row in rows(whole) if row.get("groups_carried")]
    step = next(step for step in carried if step < 6)
    run = RunFolder(whole.path.with_name("continued"))
    shutil.copytree(whole.path, run.path, symlinks=True)
    shutil.rmtree(run.export)
    for later in range(step + 1, 7):
        shutil.rmtree(run.checkpoints / f"step-1-{later:06d}")
    checkpoint = run.checkpoints / f"step-1-{step:06d}"
    state = json.loads((checkpoint / "state.json").read_text())["state"]
    assert (checkpoint / FILE).stat().st_size > 0 and state["cursors"]["rl"]["round"] < 6 + step
    assert state["observed"]["rl"] and all(name.startswith("a/") for name in state["observed"]["rl"])
    finish(run.path.parent, run.path.name)
    assert rows(run) == rows(whole)
    assert run.completions_file.read_bytes() == whole.completions_file.read_bytes()
    assert fingerprint(run.export) == fingerprint(whole.export)


def test_rollouts_made_ahead_are_refilled(whole: RunFolder) -> None:
    run, out = finish(whole.path.parent, "ahead", "rollout.staleness=1", "rollout.dynamic.batch=4", "run.steps=5")
    steps = [row for row in rows(run) if row["stage"] == "rl"]
    assert len(steps) == 5 and all(row["equal_groups"] == 0 for row in steps)
    assert any(row["groups_dropped"] for row in steps) and any(row["rounds"] > 1 for row in steps)
    assert 1 <= max(row["staleness_max"] for row in steps) <= 3
    assert "teach something" not in out
