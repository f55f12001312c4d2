"""Starting a run: its processes' surroundings, its records, and failures before training."""

import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_rl.actor.checkpoint_folder import STATE, list_files
from megatron_rl.config import Config
from megatron_rl.errors import InputError
from megatron_rl.launch.job import _completed, launch, make_job
from megatron_rl.launch.processes import processes
from megatron_rl.settings.load import load
from megatron_rl.system import machine
from megatron_rl.system.supervision.supervisor import Process
from megatron_rl.tracking.run_folder import EXPORTED, RunFolder, open_run


def quickstart(tmp_path: Path, *overrides: str):
    config, problems = load("quickstart", [f"run.folder={tmp_path}", "tracking.wandb=off", *overrides])
    assert problems == []
    return config


def started_by(folder: RunFolder, config: Config, sockets: Path, listener: socket.socket) -> list[Process]:
    return processes(make_job(folder, config, sockets, listener.getsockname(), []), config, 0, sockets, listener)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def test_processes(tmp_path: Path, listener: socket.socket) -> None:
    config = quickstart(tmp_path, "actor.pipeline_parallel=3", "rollout.engines=2", "actor.threads=3")
    folder = open_run(config)
    folder.write_config(config)
    started = started_by(folder, config, tmp_path, listener)
    assert [p.name for p in started] == ["engine0", "engine1", *(f"rank{i}" for i in range(6))]
    assert [p.service for p in started] == [True] * 2 + [False] * 6
    assert [p.name for p in started if p.echo] == ["rank0"]
    engines, ranks = started[:2], started[2:]
    addresses = [f"{tmp_path}/engine0", f"{tmp_path}/engine1"]
    for rank, process in enumerate(ranks):
        assert process.command[1:] == ["-m", "megatron_rl.train", str(folder.path)]
        assert {k: process.env[k] for k in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")} == {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "6",
            "LOCAL_WORLD_SIZE": "6",
        }
        assert process.env["MASTER_ADDR"] == "127.0.0.1"
        assert process.env["MASTER_PORT"] == str(listener.getsockname()[1])
        assert process.follows == (rank != 0)
        assert list(process.descriptors) == ([] if rank else [listener.fileno()])
        assert process.env.get("MEGATRON_RL_LISTENER") == (None if rank else str(listener.fileno()))
        assert process.env["MEGATRON_RL_ENGINES"] == ",".join(addresses)
        assert process.env["OMP_NUM_THREADS"] == "3"
        assert (process.env.get("TORCHDYNAMO_DISABLE") == "1") == (not machine.gpus())
        assert (process.env.get("MALLOC_TRIM_THRESHOLD_") == str(1 << 40)) == (not machine.gpus())
    for engine, address in zip(engines, addresses, strict=True):
        assert f"--address={address}" in engine.command
        assert f"--model={folder.initial_model}" in engine.command
        assert engine.env["OMP_NUM_THREADS"] == "1"
    keys = {p.env["MEGATRON_RL_KEY"] for p in started}
    assert len(keys) == 1 and len(bytes.fromhex(keys.pop())) == 16
    assert started_by(folder, config, tmp_path, listener)[0].env["MEGATRON_RL_KEY"] != started[0].env["MEGATRON_RL_KEY"]


def test_nccl_allocates_as_in_the_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listener: socket.socket
) -> None:
    config = quickstart(tmp_path)
    folder = open_run(config)
    folder.write_config(config)
    for given, gpus, said in ((None, 1, "0"), ("1", 1, "1"), (None, 0, None)):
        monkeypatch.setattr(machine, "gpus", lambda gpus=gpus: (80 << 30,) * gpus)
        monkeypatch.delenv("NCCL_CUMEM_ENABLE", raising=False)
        if given:
            monkeypatch.setenv("NCCL_CUMEM_ENABLE", given)
        assert {p.env.get("NCCL_CUMEM_ENABLE") for p in started_by(folder, config, tmp_path, listener)} == {said}


def test_ranks_scale_blocks_as_engines_in_fp8_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listener: socket.socket
) -> None:
    name = "NVTE_FP8_BLOCK_SCALING_FP32_SCALES"
    monkeypatch.delenv(name, raising=False)
    config = quickstart(tmp_path)
    folder = open_run(config)
    folder.write_config(config)
    config.actor.fp8, config.rollout.engine, config.rollout.sglang.fp8 = "blockwise", "sglang", True
    for gpus, capability, said in ((1, 90, "1"), (1, 100, None), (0, 0, None)):
        monkeypatch.setattr(machine, "gpus", lambda gpus=gpus: (80 << 30,) * gpus)
        monkeypatch.setattr(machine, "gpu_capability", lambda capability=capability: capability)
        ranks = [p for p in started_by(folder, config, tmp_path, listener) if p.name.startswith("rank")]
        assert ranks and {p.env.get(name) for p in ranks} == {said}


def test_a_run_that_is_complete_is_not_begun_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = quickstart(tmp_path, "run.resume=auto", "run.steps=6")
    run = open_run(config)
    run.write_config(config)
    run.unlock()
    for step in (4, 6):
        checkpoint = run.checkpoints / f"step-1-00000{step}"
        checkpoint.mkdir(parents=True)
        (checkpoint / STATE).write_text(json.dumps({"state": {"stage": "rl", "step": step}, "sizes": {}}))
        list_files(checkpoint)
    run.export.mkdir()
    (run.export / EXPORTED).write_text('{"step": 6}')
    run.mark_complete("rl", 6)
    before = {p: p.stat().st_mtime_ns for p in run.path.rglob("*")}
    assert launch(config) == 0
    out = capfd.readouterr().out
    assert f"{run.path} is complete: 6 steps. For more steps set run.steps above 6" in out and str(run.export) in out
    assert {p: p.stat().st_mtime_ns for p in run.path.rglob("*") if p.name != ".lock"} == {
        p: at for p, at in before.items() if p.name != ".lock"
    }
    run.update_manifest(completed={})  # it was stopped there, on its way to more
    with pytest.raises(InputError, match=r"has 6 steps already, and run\.steps is 5: set it to 6 or more to go on"):
        launch(quickstart(tmp_path, "run.resume=auto", "run.steps=5"))
    run.mark_complete("rl", 6)
    shutil.rmtree(run.checkpoints / "step-1-000006")  # somebody wants the last steps once more
    assert _completed(run, config) is None


def test_checkpoints_none_of_which_is_whole_are_said_and_left_alone(tmp_path: Path) -> None:
    config = quickstart(tmp_path, "run.resume=auto")
    run = open_run(config)
    run.write_config(config)
    run.unlock()
    (run.checkpoints / "step-1-000002").mkdir(parents=True)
    with pytest.raises(InputError, match=r"No checkpoint in .* \(step-1-000002: state.json is missing"):
        launch(config)
    assert (run.checkpoints / "step-1-000002").is_dir()
    open_run(config).unlock()  # nothing holds the folder


def test_bad_input_found_by_a_process_is_one_paragraph(tmp_path: Path) -> None:
    """The tokenizer does not fit the model: found while the initial model is written. The records keep the attempt."""
    config = quickstart(tmp_path, "model.architecture.vocab_size=50", "run.resume=auto", "run.seed=3")
    with pytest.raises(InputError, match="vocab_size=50") as error:
        launch(config)
    assert "\n" not in str(error.value)
    run = RunFolder(tmp_path / "quickstart")
    assert sorted(p.name for p in run.path.iterdir()) == [".lock", "config.yaml", "logs", "manifest.json"]
    manifest = json.loads(run.manifest_file.read_text())
    assert manifest["seed"] == 3
    assert manifest["config"]["model"]["architecture"]["vocab_size"] == 50
    assert manifest["attempts"][0]["versions"]["torch"] == machine.installed("torch")
    assert "vocab_size=50" in (run.path / "logs/1/initial_model.log").read_text()
    open_run(config).unlock()  # nothing holds the folder


def test_a_model_that_has_gone_ends_every_process(tmp_path: Path) -> None:
    """Whichever process finds it first, the run ends with its paragraph."""
    config = quickstart(tmp_path, f"model.path={tmp_path}/gone", "actor.tensor_parallel=1")
    config.model.architecture = {}
    said = r"no such folder as \S*gone:|gone(/config\.json does not exist|' is not a folder)"
    with pytest.raises(InputError, match=said):
        launch(config)
    assert {log.name for log in (tmp_path / "quickstart/logs/1").iterdir()} == {"engine0.log", "rank0.log"}
