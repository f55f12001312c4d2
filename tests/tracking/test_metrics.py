"""What rank 0 records, also when a run is interrupted and continued."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from megatron_rl.algorithms.config import SFTConfig
from megatron_rl.config import Config
from megatron_rl.tracking.metrics import Metrics, rows
from megatron_rl.tracking.mirrors.mirror import Mirror
from megatron_rl.tracking.run_folder import RunFolder


def without_mirrors() -> Config:
    config = Config(sft=SFTConfig(steps=1))
    config.tracking.wandb, config.tracking.tensorboard = "off", False
    return config


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def record(metrics: Metrics, steps: range) -> None:
    for step in steps:
        metrics.log(step, {"reward": step / 10}, "rl")
        metrics.completions(step, [{"response": "é\n", "reward": 0.5}] * 2)
        if step % 2:
            metrics.log(step, {"correct": 0.5}, "eval")


def test_lines(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    metrics = Metrics(run, without_mirrors())
    began = datetime.now(UTC).replace(microsecond=0)
    metrics.log(0, {"loss": 2.5, "lr": 1e-3}, "sft")
    metrics.log(0, {"reward": 1})
    metrics.completions(0, [{"prompt": "p", "response": "é\n", "components": {"format": 1.0}}])
    metrics.completions(0, [{"response": "held out"}], evaluation="step 10")
    # readable at once, before anything is closed
    recorded = lines(run.metrics_file)
    written = [datetime.fromisoformat(row.pop("timestamp")) for row in recorded]
    assert began <= written[0] <= written[1] <= datetime.now(UTC)
    assert recorded == [
        {"stage": "sft", "step": 0, "loss": 2.5, "lr": 1e-3},
        {"stage": "rl", "step": 0, "reward": 1.0},
    ]
    assert lines(run.completions_file) == [
        {"step": 0, "prompt": "p", "response": "é\n", "components": {"format": 1.0}},
        {"step": 0, "evaluation": "step 10", "response": "held out"},
    ]
    with pytest.raises(ValueError, match="stage 'test'"):
        metrics.log(0, {}, "test")
    metrics.close()


def test_a_continued_run_leaves_the_files_of_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, broken = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "broken")
    for run in (whole, broken):
        run.path.mkdir()
    metrics = Metrics(whole, without_mirrors())
    record(metrics, range(10))
    metrics.close()

    metrics = Metrics(broken, without_mirrors())
    record(metrics, range(4))
    position = metrics.position()  # the checkpoint
    record(metrics, range(4, 7))  # lost: the process is killed
    with broken.metrics_file.open("a") as file:
        file.write('{"stage": "rl", "st')  # in the middle of a line
    metrics = Metrics(broken, without_mirrors(), position)
    record(metrics, range(4, 10))
    metrics.close()

    assert (broken.path / "completions.jsonl").read_bytes() == (whole.path / "completions.jsonl").read_bytes()
    ours, theirs = ([{**row, "timestamp": ""} for row in lines(run.metrics_file)] for run in (broken, whole))
    assert ours == theirs
    assert len(lines(whole.metrics_file)) == 15


def test_a_run_that_starts_anew_starts_with_empty_files(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    record(Metrics(run, without_mirrors()), range(3))
    metrics = Metrics(run, without_mirrors())
    assert metrics.position() == {"metrics": 0, "completions": 0}


@pytest.mark.parametrize("harm", ["shorter", "cut", "gone", "other line ends"])
def test_files_that_have_lost_lines_are_continued_with_a_warning(
    tmp_path: Path, harm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunFolder(tmp_path)
    metrics = Metrics(run, without_mirrors())
    record(metrics, range(4))
    position = metrics.position()
    content = run.metrics_file.read_bytes()
    kept = 3
    if harm == "shorter":
        run.metrics_file.write_bytes(b"".join(content.splitlines(keepends=True)[:kept]))
    elif harm == "cut":
        run.metrics_file.write_bytes(content[: len(b"".join(content.splitlines(keepends=True)[:kept])) + 5])
    elif harm == "gone":
        run.metrics_file.unlink()
        kept = 0
    else:  # more bytes than there were, and lines end elsewhere
        run.metrics_file.write_bytes(content.replace(b"\n", b"\r\n"))
        kept = None  # type: ignore[assignment]
    metrics = Metrics(run, without_mirrors(), position)
    assert "metrics.jsonl is not as it was at the checkpoint" in capsys.readouterr().out
    metrics.log(9, {"reward": 1.0})
    steps = [row["step"] for row in lines(run.metrics_file)]
    assert steps[-1] == 9
    if kept is not None:
        assert steps == [*[0, 1, 1][:kept], 9]


def test_lines_that_are_none_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(b'{"step": 1}\n{"ste\n[3]\n\xff\xfe\n{"step": 2}\n{"st')
    assert list(rows(tmp_path / "m")) == [{"step": 1}, {"step": 2}]


def test_a_mirror_that_fails_is_let_go_and_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, config = RunFolder(tmp_path), without_mirrors()
    config.tracking.tensorboard = True
    (tmp_path / "tensorboard").write_text("in the way")
    metrics = Metrics(run, config)
    metrics.log(0, {"reward": 1.0})
    metrics.close()
    said = capsys.readouterr().out
    assert said.count("warning: TensorBoard takes no more numbers") == 1
    assert len(lines(run.metrics_file)) == 1


def test_a_mirror_that_fails_later_too(capsys: pytest.CaptureFixture[str]) -> None:
    class Fragile:
        def log(self, value: int) -> None:
            if value:
                raise SystemError("no\n  more")

    mirror = Mirror("wandb", Fragile)
    mirror.call("log", 0)
    assert mirror and capsys.readouterr().out == ""
    mirror.call("log", 1)
    mirror.call("log", 1)
    assert not mirror
    assert capsys.readouterr().out == "warning: wandb takes no more numbers (no more); the run goes on.\n"
    assert not Mirror("wandb", lambda: None)


def test_tensorboard_shows_each_stage_without_what_was_undone(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, config = RunFolder(tmp_path), without_mirrors()
    config.tracking.tensorboard = True
    metrics = Metrics(run, config)
    for step in range(5):
        metrics.log(step, {"loss": 1.0 + step}, "sft")
    metrics.log(0, {"reward": 0.25}, "rl")
    position = metrics.position()
    metrics.log(1, {"reward": 99.0}, "rl")  # undone by the resume
    for mirror in metrics._mirrors:
        mirror.call("finish")
    metrics = Metrics(run, config, position)
    metrics.log(1, {"reward": 0.5}, "rl")
    metrics.close()

    def scalars(stage: str, tag: str) -> list[tuple[int, float]]:
        events = EventAccumulator(str(run.tensorboard / stage))
        events.Reload()
        return [(e.step, e.value) for e in events.Scalars(tag)]

    assert scalars("sft", "loss") == [(step, 1.0 + step) for step in range(5)]
    assert scalars("rl", "reward") == [(0, 0.25), (1, 0.5)]
