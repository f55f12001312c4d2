"""What a run may start from; every refusal says what to do."""

import json
from pathlib import Path

import pytest

from megatron_rl.actor.checkpoint_folder import STATE, list_files
from megatron_rl.actor.config import ActorConfig, LoRAConfig, ModelConfig
from megatron_rl.config import Config, RunConfig
from megatron_rl.errors import InputError
from megatron_rl.tracking.run_folder import RunFolder
from megatron_rl.tracking.start import start_problems, started_from
from tests.actor.models import QWEN3


def checkpoint(run: RunFolder, step: int, **more: object) -> Path:
    folder = run.checkpoints / f"step-1-{step:06d}"
    folder.mkdir(parents=True)
    state = {"state": {"stage": "rl", "step": step}, "sizes": {}} | more
    (folder / STATE).write_text(json.dumps(state))
    list_files(folder)
    return folder


def made(folder: Path, name: str = "one", **more: object) -> RunFolder:
    run = RunFolder(folder / name)
    run.initial_model.mkdir(parents=True)
    (run.initial_model / "config.json").write_text(json.dumps(QWEN3))
    run.write_config(Config(run=RunConfig(name=name), model=ModelConfig(architecture=QWEN3), **more))  # type: ignore[arg-type]
    return run


def asked(folder: Path, start: Path | str, **more: object) -> Config:
    run = RunConfig(folder=str(folder), name="new", start_from=str(start))
    return Config(run=run, model=ModelConfig(architecture=QWEN3), **more)  # type: ignore[arg-type]


def test_a_run_gives_its_newest_checkpoint(tmp_path: Path) -> None:
    run = made(tmp_path)
    old, new = checkpoint(run, 1), checkpoint(run, 2)
    assert started_from(asked(tmp_path, run.path).run).checkpoint == new
    found = started_from(asked(tmp_path, old).run)
    assert (found.checkpoint, found.run.path) == (old, run.path)
    assert start_problems(asked(tmp_path, old), QWEN3) == []
    assert start_problems(Config(), QWEN3) == []


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    empty = made(tmp_path, "empty")
    run = made(tmp_path)
    broken = checkpoint(run, 1)
    (broken / STATE).write_text("{}")
    for start, said in (
        (tmp_path / "nowhere", "there is no such folder"),
        (tmp_path, "is neither a run's folder"),
        (empty.path, "has no checkpoint yet"),
        (run.path, "is damaged"),
        (run.checkpoints, "is neither a run's folder"),
    ):
        with pytest.raises(InputError, match=said):
            started_from(asked(tmp_path, start).run)
        assert said in start_problems(asked(tmp_path, start), QWEN3)[0]


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    run = made(tmp_path)
    checkpoint(run, 1)
    [said] = start_problems(asked(tmp_path, run.path), QWEN3 | {"num_hidden_layers": 3})
    assert "another model than this run's: layers 3, not 2" in said and "model.architecture" in said
    other_sizes = asked(tmp_path, run.path, actor=ActorConfig(tensor_parallel=2))
    assert start_problems(other_sizes, QWEN3) == []
    own = asked(tmp_path, run.path)
    own.run.name = "one"
    own.run.resume = "never"
    assert "is this run's own folder" in start_problems(own, QWEN3)[0]
    adapted = made(tmp_path, "adapted")
    checkpoint(adapted, 1, base={"hash": "0"})
    assert "holds adapters alone" in start_problems(asked(tmp_path, adapted.path), QWEN3)[0]
    frozen = asked(tmp_path, run.path, actor=ActorConfig(lora=LoRAConfig(rank=4)))
    assert start_problems(frozen, QWEN3) == []
    frozen.run.start_optimizer = True
    assert "moments of all weights" in start_problems(frozen, QWEN3)[0]
    alone = Config(run=RunConfig(start_optimizer=True))
    assert "needs run.start_from" in start_problems(alone, QWEN3)[0]


def test_a_run_that_has_begun_needs_its_start_no_more(tmp_path: Path) -> None:
    config = asked(tmp_path, tmp_path / "gone")
    assert start_problems(config, QWEN3)
    checkpoint(RunFolder(tmp_path / "new"), 1)
    assert start_problems(config, QWEN3) == []
