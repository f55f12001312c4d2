"""The run's folder: which one a run gets, what it refuses, and what it keeps."""

import json
import os
import shutil
from pathlib import Path

import pytest

from megatron_rl.config import Config
from megatron_rl.errors import InputError
from megatron_rl.settings.load import settle
from megatron_rl.system.processes import program
from megatron_rl.tracking.run_folder import EXPORTED, RunFolder, changes, open_run


def configured(folder: Path, **run: object) -> Config:
    config = settle(Config())
    config.run.folder, config.run.name = str(folder), "mine"
    for key, value in run.items():
        setattr(config.run, key, value)
    return config


def started(config: Config) -> RunFolder:
    """A run with a checkpoint, whose process has ended."""
    run = open_run(config)
    run.write_config(config)
    (run.checkpoints / "step-000010").mkdir(parents=True)
    run.unlock()
    return run


def test_never_takes_the_next_number(tmp_path: Path) -> None:
    names = [open_run(configured(tmp_path / "runs", resume="never")).path.name for _ in range(3)]
    assert names == ["mine", "mine-2", "mine-3"]
    assert os.readlink(tmp_path / "runs/latest") == "mine-3"


def test_auto_continues_in_the_same_folder(tmp_path: Path) -> None:
    config = configured(tmp_path)
    first = started(config)
    config.run.steps += 5  # may change
    second = open_run(config)
    assert second.path == first.path == tmp_path / "mine"
    assert (tmp_path / "latest").resolve() == first.path
    assert changes(first.config(), config) == {"run.steps": (100, 105)}


@pytest.mark.parametrize(
    ("room", "key", "value", "said"),
    [("model", "dtype", "float32", "model.dtype 'bfloat16' -> 'float32'"), ("run", "seed", 1, "run.seed 0 -> 1")],
)
def test_another_model_or_seed_is_refused_once_there_is_a_checkpoint(
    tmp_path: Path, room: str, key: str, value: object, said: str
) -> None:
    config = configured(tmp_path)
    before = started(config).config_file.read_text()
    setattr(getattr(config, room), key, value)
    with pytest.raises(InputError, match=said):
        open_run(config)
    assert (tmp_path / "mine/config.yaml").read_text() == before


def test_without_a_checkpoint_anything_may_change(tmp_path: Path) -> None:
    config = configured(tmp_path)
    run = open_run(config)
    run.write_config(config)
    run.unlock()
    config.model.dtype = "float32"
    assert open_run(config).path == run.path


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").touch()
    with pytest.raises(InputError, match=r"not a run \(thesis.tex"):
        open_run(configured(tmp_path))


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    run = open_run(configured(tmp_path))
    with pytest.raises(InputError, match="Another process is running"):
        open_run(configured(tmp_path))
    run.unlock()
    open_run(configured(tmp_path)).unlock()


def test_config_and_manifest_are_kept_whole(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    config = configured(tmp_path)
    config.rewards.terms = {"my.reward": 0.5}
    run.write_config(config)
    assert run.config() == config
    assert run.manifest() == {} and run.attempt() == 0
    run.update_manifest(seed=3, attempts=[{}])
    run.update_manifest(plan_hash="abc", attempts=[{}, {}])
    assert json.loads((tmp_path / "manifest.json").read_text()) == {
        "seed": 3,
        "attempts": [{}, {}],
        "plan_hash": "abc",
    }
    assert run.logs() == tmp_path / "logs/2"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.yaml", "manifest.json"]  # nothing left beside them


def test_latest_is_a_convenience(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "latest").mkdir()  # as a copy that follows links leaves it
    open_run(configured(tmp_path)).unlock()
    assert "latest does not lead to this run" in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "mine"]


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"a": \xff}'])
def test_a_damaged_manifest_is_named(tmp_path: Path, content: str) -> None:
    run = RunFolder(tmp_path)
    run.manifest_file.write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=r"manifest\.json is damaged: it .* Restore it, or move it away"):
        run.manifest()


@pytest.mark.parametrize("content", [b"run: {steps: 1", b"\xff\xfe\x00", b"- 1"])
def test_a_damaged_configuration_is_named(tmp_path: Path, content: bytes) -> None:
    config = configured(tmp_path)
    started(config).config_file.write_bytes(content)
    with pytest.raises(InputError, match=r"mine/config\.yaml "):
        open_run(config)


def test_the_command_that_continues_a_run(tmp_path: Path) -> None:
    config = configured(tmp_path / "my runs")
    run = started(config)
    assert run.command() == f"{program()} train '{tmp_path}/my runs/mine/config.yaml'"
    config.run.resume = "never"
    run.write_config(config)
    assert run.command().endswith("config.yaml' run.resume=auto")


def test_a_run_is_complete_at_its_steps_and_with_its_export(tmp_path: Path) -> None:
    config = configured(tmp_path, steps=6)
    run = started(config)
    assert run.completed(config) is None
    run.mark_complete("rl", 6)
    assert run.completed(config) is None
    run.export.mkdir()
    for record, step in (("{", None), ('{"step": 3}', 3), ('{"step": 6}', 6)):
        assert run.completed(config) is None  # there is none, or it is of an earlier step
        (run.export / EXPORTED).write_text(record)
        assert run.exported() == (step and ("rl", step))
    assert run.completed(config) == ("rl", 6)
    config.run.steps = 7
    assert run.completed(config) is None
    config.run.steps, config.run.export = 5, False
    shutil.rmtree(run.export)
    assert run.completed(config) == ("rl", 6)


def test_the_model_is_the_given_one_or_the_initial_one(tmp_path: Path) -> None:
    run, config = RunFolder(tmp_path), configured(tmp_path)
    run.write_config(config)
    assert run.model_folder() == tmp_path / "initial_model"
    config.model.path = str(tmp_path / "given")
    run.write_config(config)
    (tmp_path / "given").mkdir()
    (tmp_path / "given/config.json").write_text('{"model_type": "qwen3"}')
    assert run.model_folder() == tmp_path / "given"
    assert run.hf_config() == {"model_type": "qwen3"}


def test_how_an_attempt_ended_is_noted_in_it_alone(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.update_manifest(attempts=[{"started": "a"}, {"started": "b"}])
    run.mark_ended(1, "rank0 failed")
    first, last = run.manifest()["attempts"]
    assert first == {"started": "a"}
    assert (last["started"], last["ended"]["code"], last["ended"]["message"]) == ("b", 1, "rank0 failed")
