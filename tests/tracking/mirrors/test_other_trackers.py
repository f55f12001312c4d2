"""trackio and MLflow, as far as the calls that they get; neither has to be installed."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_rl.config import Config
from megatron_rl.tracking.check import check_tracking
from megatron_rl.tracking.config import TrackingConfig
from megatron_rl.tracking.metrics import Metrics
from megatron_rl.tracking.run_folder import RunFolder


class Module:
    """Stands for a package: every call of it is kept."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*arguments: Any, **options: Any) -> Any:
            self.calls.append((name, arguments, options))
            return SimpleNamespace(info=SimpleNamespace(run_id="r1"))

        return call

    def of(self, name: str) -> list[Any]:
        return [(arguments, options) for called, arguments, options in self.calls if called == name]


def config(**settings: Any) -> Config:
    return Config(tracking=TrackingConfig(wandb="off", tensorboard=False, **settings))


def test_trackio_gets_every_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackio", module := Module())  # type: ignore[arg-type]
    metrics = Metrics(RunFolder(tmp_path), config(trackio=True, project="p", group="g"))
    metrics.log(1, {"reward": 0.5}, "rl")
    metrics.log(1, {"greedy/correct": 1.0}, "eval")
    metrics.close()
    [(_, started)] = module.of("init")
    assert (started["project"], started["name"], started["group"], started["resume"]) == (
        "p",
        tmp_path.name,
        "g",
        "allow",
    )
    assert module.of("log") == [
        (({"rl/reward": 0.5, "rl/step": 1},), {}),
        (({"eval/greedy/correct": 1.0, "eval/step": 1},), {}),
    ]
    assert module.calls[-1][0] == "finish"


def test_mlflow_gets_every_number_and_the_options_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", module := Module())  # type: ignore[arg-type]
    run = RunFolder(tmp_path)
    for _ in range(2):  # the second continues it
        metrics = Metrics(run, config(mlflow=True, tags=["a"]))
        metrics.log(3, {"reward/my.term(x)/score": 0.5}, "rl")
        metrics.close()
    first, second = module.of("start_run")
    assert first == ((), {"run_id": None, "run_name": tmp_path.name}) and second[1]["run_id"] == "r1"
    [((parameters,), _)] = module.of("log_params")
    assert parameters["run.steps"] == str(Config().run.steps)
    assert module.of("set_tags") == [(({"a": ""},), {})]
    assert module.of("log_metrics") == [(({"rl/reward.my.term_x_.score": 0.5},), {"step": 3})] * 2
    assert len(module.of("end_run")) == 2


def test_a_tracker_that_is_not_there_is_found_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron_rl.tracking.check.find_spec", lambda name: None)
    said = check_tracking(TrackingConfig(wandb="off", trackio=True, mlflow=True))
    assert [message.rpartition(": ")[2] for message in said] == ["pip install trackio.", "pip install mlflow-skinny."]
    assert check_tracking(TrackingConfig(wandb="off")) == []
    monkeypatch.setattr("megatron_rl.tracking.check.find_spec", lambda name: None if name == "sqlalchemy" else True)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    [said_of_address] = check_tracking(TrackingConfig(wandb="off", mlflow=True))
    assert "MLFLOW_TRACKING_URI" in said_of_address
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert check_tracking(TrackingConfig(wandb="off", mlflow=True)) == []


def test_a_tracker_that_cannot_be_imported_never_stops_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)  # type: ignore[arg-type]
    metrics = Metrics(RunFolder(tmp_path), config(trackio=True))
    metrics.log(1, {"reward": 0.5}, "rl")
    metrics.close()
    assert "warning: trackio takes no more numbers" in capsys.readouterr().out
