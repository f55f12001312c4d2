"""What rank 0 records, also when a run is interrupted and continued."""

import json
from pathlib import Path

import pytest

from megatron_rl.config import Config
from megatron_rl.tracking.metrics import Metrics
from megatron_rl.tracking.run_folder import RunFolder


def without_mirrors() -> Config:
    config = Config()
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
    metrics.log(0, {"loss": 2.5, "lr": 1e-3}, "sft")
    metrics.log(0, {"reward": 1})
    metrics.completions(0, [{"prompt": "p", "response": "é\n", "components": {"format": 1.0}}])
    # readable at once, before anything is closed
    assert lines(run.metrics_file) == [
        {"stage": "sft", "step": 0, "loss": 2.5, "lr": 1e-3},
        {"stage": "rl", "step": 0, "reward": 1.0},
    ]
    assert lines(run.completions_file) == [{"step": 0, "prompt": "p", "response": "é\n", "components": {"format": 1.0}}]
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

    for name in ("metrics.jsonl", "completions.jsonl"):
        assert (broken.path / name).read_bytes() == (whole.path / name).read_bytes()
    assert len(lines(whole.metrics_file)) == 15


def test_a_run_that_starts_anew_starts_with_empty_files(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    record(Metrics(run, without_mirrors()), range(3))
    metrics = Metrics(run, without_mirrors())
    assert metrics.position() == {"metrics": 0, "completions": 0}


def test_files_shorter_than_at_the_checkpoint_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"metrics.jsonl is shorter than at the checkpoint \(0 < 10 bytes\)"):
        Metrics(RunFolder(tmp_path), without_mirrors(), {"metrics": 10, "completions": 0})


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
    for writer in metrics._writers.values():
        writer.flush()
    metrics = Metrics(run, config, position)
    metrics.log(1, {"reward": 0.5}, "rl")
    metrics.close()

    def scalars(stage: str, tag: str) -> list[tuple[int, float]]:
        events = EventAccumulator(str(run.tensorboard / stage))
        events.Reload()
        return [(e.step, e.value) for e in events.Scalars(tag)]

    assert scalars("sft", "loss") == [(step, 1.0 + step) for step in range(5)]
    assert scalars("rl", "reward") == [(0, 0.25), (1, 0.5)]
