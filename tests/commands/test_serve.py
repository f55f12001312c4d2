"""Which folder of a run is served, and what is said where that is not the run's newest policy."""

import json
from pathlib import Path

import pytest

from megatron_rl.actor.checkpoint_folder import STATE, list_files
from megatron_rl.commands.serve import model_folder
from megatron_rl.tracking.run_folder import EXPORTED


def test_a_policy_that_the_run_has_left_behind_is_said_to_be_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/config.json").write_text("{}")
    (tmp_path / "hf" / EXPORTED).write_text('{"stage": "rl", "step": 2}')
    for step, said in ((2, ""), (4, "hf is the policy of step 2, and the newest checkpoint is step-1-000004: ")):
        checkpoint = tmp_path / f"checkpoints/step-1-00000{step}"
        checkpoint.mkdir(parents=True)
        (checkpoint / STATE).write_text(json.dumps({"state": {"stage": "rl", "step": step}, "sizes": {}}))
        list_files(checkpoint)
        assert model_folder(tmp_path) == tmp_path / "hf"
        out = capsys.readouterr().out
        assert (said in out) if said else (out == "")
