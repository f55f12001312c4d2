"""Several seeds one after the other."""

import json
import signal
from pathlib import Path

import pytest

from megatron_rl.config import Config, RunConfig
from megatron_rl.errors import InputError
from megatron_rl.launch.seeds import launch_seeds, of_seed, read_seeds


def test_seeds_are_read() -> None:
    assert read_seeds("0:5") == [0, 1, 2, 3, 4]
    assert read_seeds("1,3,7") == [1, 3, 7]
    assert read_seeds("9, 0:2") == [9, 0, 1]


@pytest.mark.parametrize("text", ["", "a", "5:5", "5:2", "-1", "1,,2", "0:3:2", "0:1001", "1.5", "0:2,1"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=f"--seeds {text}"):
        read_seeds(text)


def configured(folder: Path) -> Config:
    return Config(run=RunConfig(name="mine", folder=str(folder), seed=99, resume="never"))


def test_every_seed_has_a_run_that_goes_on(tmp_path: Path) -> None:
    config = configured(tmp_path)
    made = of_seed(config, 3)
    assert (made.run.seed, made.run.name, made.run.resume) == (3, "mine-seed3", "auto")
    assert (config.run.seed, config.run.name) == (99, "mine")


def test_what_fails_stops_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    started = []

    def start(config: Config) -> int:
        started.append(config.run.seed)
        if config.run.seed == 1:
            raise InputError("no such folder")
        folder = tmp_path / config.run.name
        folder.mkdir()
        lines = [{"stage": "rl", "step": 1, "reward": 0.25}, {"stage": "eval", "step": 1, "sampled/correct": 0.5}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return 1 if config.run.seed == 2 else 0

    assert launch_seeds(configured(tmp_path), [0, 1, 2, 3], start) == 2
    assert started == [0, 1, 2, 3]
    said = capsys.readouterr()
    assert said.err == "error: no such folder\n"
    assert said.out.splitlines()[-5:-1] == [
        f"{tmp_path}/mine-seed0: complete, reward 0.250, held-out sampled correct 0.500",
        f"{tmp_path}/mine-seed1: exit code 2",
        f"{tmp_path}/mine-seed2: exit code 1, reward 0.250, held-out sampled correct 0.500",
        f"{tmp_path}/mine-seed3: complete, reward 0.250, held-out sampled correct 0.500",
    ]
    assert said.out.splitlines()[-1].endswith(
        f"report {tmp_path}/mine-seed0 {tmp_path}/mine-seed2 {tmp_path}/mine-seed3"
    )


def test_a_signal_stops_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = 128 + signal.SIGTERM
    assert launch_seeds(configured(tmp_path), [0, 1, 2], lambda config: code if config.run.seed else 0) == code
    said = capsys.readouterr().out.splitlines()
    assert [line.rpartition(": ")[2] for line in said if "mine-seed" in line] == [
        "complete",
        "exit code 143",
        "not started",
    ]
