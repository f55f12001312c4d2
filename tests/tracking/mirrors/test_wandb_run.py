"""The wandb mirror, offline; and that it never asks."""

import re
from pathlib import Path
from typing import Any

import pytest

from megatron_rl.config import Config
from megatron_rl.tracking.check import check_tracking
from megatron_rl.tracking.config import TrackingConfig
from megatron_rl.tracking.mirrors.mirror import Mirror
from megatron_rl.tracking.mirrors.wandb_run import SAMPLES, Wandb, has_key, start_wandb
from megatron_rl.tracking.run_folder import RunFolder


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def test_a_key_is_found_where_wandb_looks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert not has_key()
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    assert has_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not has_key()
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert has_key()


def test_off_is_off(tmp_path: Path) -> None:
    config = Config()
    config.tracking.wandb = "off"
    assert start_wandb(RunFolder(tmp_path), config) is None
    assert not (tmp_path / "wandb").exists()


def test_without_a_key_it_records_offline_under_a_lasting_id(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    mirror = start_wandb(run, Config())
    assert mirror is not None
    mirror.log("rl", 0, {"reward": 0.5})
    mirror.finish()
    name = run.manifest()["wandb_id"]
    files = list((tmp_path / "wandb").glob(f"offline-run-*-{name}/run-{name}.wandb"))
    assert len(files) == 1 and files[0].stat().st_size > 0


def test_a_mode_that_wandb_does_not_know_is_no_reason_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "maybe")
    mirror = Mirror("wandb", lambda: start_wandb(RunFolder(tmp_path), Config()))
    mirror.call("log", "rl", 0, {"reward": 0.5})
    mirror.call("finish")
    assert "wandb" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, []),
        ({"wandb": "offline", "project": "a-b_c.d e"}, []),
        ({"project": "team/exp"}, ["use tracking.entity=team tracking.project=exp"]),
        ({"project": "/exp"}, ["allows no / in"]),
        ({"project": "a?b:c"}, ["allows no : . in"]),
        ({"project": "a" * 129}, ["has 129 characters; wandb takes 1 to 128"]),
        ({"project": ""}, ["has 0 characters"]),
        ({"wandb": "off", "project": "team/exp"}, []),
        ({"wandb": "online"}, ["needs an API key"]),
        ({"entity": "team", "tags": ["a", "b" * 64]}, []),
        ({"tags": ["a", "b" * 65]}, ["has 65 characters; wandb takes 1 to 64"]),
        ({"wandb": "off", "tags": ["b" * 65]}, []),
    ],
)
def test_what_is_wrong_is_found_before(settings: dict[str, Any], said: list[str]) -> None:
    found = check_tracking(TrackingConfig(**settings))
    assert len(found) == len(said)
    assert all(re.search(wanted, message) for wanted, message in zip(said, found, strict=True)), found


class Recorder:
    def __init__(self) -> None:
        self.logged: list[dict[str, Any]] = []

    def log(self, values: dict[str, Any]) -> None:
        self.logged.append(values)


def test_tables_of_completions_come_every_so_many_steps_and_with_evaluations() -> None:
    run = Recorder()
    mirror = Wandb(run, 10)
    row = {"id": "a", "prompt": "p", "response": "r", "reward": 0.5, "components": {"format/score": 1.0}}
    for step in range(1, 21):
        mirror.samples(step, [row] * 100, "")
    mirror.samples(20, [{"mode": "greedy", "id": "b", "report": {"correct": 1.0}}], "after RL")
    mirror.samples(30, [], "")
    assert [sorted(values) for values in run.logged] == [["rl/samples", "rl/step"]] * 2 + [
        ["eval/samples", "eval/step"]
    ]
    table = run.logged[0]["rl/samples"]
    assert len(table.data) == SAMPLES and table.columns[0] == "step"
    assert table.data[0] == [10, "a", "p", "r", None, 0.5, '{"format/score": 1.0}', None, None]
    none = Recorder()
    Wandb(none, 0).samples(10, [row], "")
    assert none.logged == []
    mirror.log("rl", 3, {"reward": 0.5})
    assert run.logged[-1] == {"rl/reward": 0.5, "rl/step": 3}


def test_entity_group_and_tags_reach_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    given: dict[str, Any] = {}

    class Started(Recorder):
        def define_metric(self, *_: Any, **__: Any) -> None: ...

    monkeypatch.setattr(wandb, "init", lambda **options: given.update(options) or Started())
    config = Config(tracking=TrackingConfig(entity="team", group="ablation", tags=["a", "b"]))
    assert start_wandb(RunFolder(tmp_path), config) is not None
    assert (given["entity"], given["group"], given["tags"]) == ("team", "ablation", ["a", "b"])
    start_wandb(RunFolder(tmp_path), Config())
    assert (given["entity"], given["group"], given["tags"]) == (None, None, None)
