"""Suites during a run: in every stage, with the weights of their step; a killed run continues to the same numbers."""

import json
import shutil
from pathlib import Path

from megatron_rl.actor.checkpoint_folder import all_checkpoints
from megatron_rl.cli import main
from megatron_rl.data.tasks.false_belief import false_belief
from megatron_rl.tracking.names import find
from megatron_rl.tracking.run_folder import RunFolder
from tests.commands.test_evaluate import rows as records
from tests.runs.test_stages import finish, rows, start

SUITES = "evaluation.suites={false_belief: {limit: 8, max_new_tokens: 6}}"
SFT = ["run.steps=0", "sft.steps=4", "evaluation.prompts=0", "evaluation.suites_every=2", "rollout.max_new_tokens=4"]


def test_a_run_of_imitation_alone_is_measured_on_its_way(tmp_path: Path) -> None:
    """It has rows of its own, and neither a task nor rewards."""
    examples = false_belief(0).train[:16]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"raw_prompt": e.prompt, "target": e.target}) + "\n" for e in examples))
    more = [*SFT, SUITES, f"sft.data.path={path}", "rewards.terms={}"]
    out = finish(start(tmp_path, "sft", *more))
    run = RunFolder(tmp_path / "sft")
    assert "held-out, SFT step 2: false_belief accuracy 0.000" in out and "held-out, after SFT: false_belief" in out
    found = rows(run)
    assert [(row["stage"], row["step"], row.get("weight_version")) for row in found] == [
        ("eval", 0, 0),
        ("sft", 1, None),
        ("sft", 2, None),
        ("eval", 2, 1),  # the engine got this step's weights for it
        ("sft", 3, None),
        ("sft", 4, 2),
        ("eval", 4, 2),
    ]
    assert all(find(name) for row in found for name in row)
    told = [json.loads(line) for line in run.completions_file.read_text().splitlines()]
    assert {(row["step"], row["evaluation"], row["suite"]) for row in told} == {
        (0, "before", "false_belief"),
        (2, "SFT step 2", "false_belief"),
        (4, "after SFT", "false_belief"),
    }
    assert len(told) == 3 * 8

    # what the command says of the exported policy is what the run said at its end
    command = ["evaluate", str(run.path), "false_belief", "--limit", "8", "--max-new-tokens", "6", "--workers", "1"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    last = [row["completion"] for row in told if row["step"] == 4]
    assert [row["completion"] for row in records(tmp_path / "out")] == last

    kept = all_checkpoints(run.checkpoints)
    for checkpoint in kept:
        if "000004" in checkpoint.name:
            shutil.rmtree(checkpoint)
    finish(start(tmp_path, "sft", *more))
    assert rows(run) == found
