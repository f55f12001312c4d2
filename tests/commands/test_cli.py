"""The command line as a newcomer meets it."""

import subprocess
import sys
from pathlib import Path

import pytest

from megatron_rl import __version__
from megatron_rl.cli import main


def test_help_names_the_commands_and_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    for part in ("train", "check", "recipes", "options", "megatron-rl train quickstart", "key=value"):
        assert part in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.split() == ["megatron-rl", __version__]


def test_recipes_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines]
    assert {"quickstart", "social_r1.tiny", "social_r1.qwen3_4b", "social_r1.qwen3_8b"} <= set(names)
    assert all(len(line.split()) > 3 for line in lines)


def test_options_of_a_group(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["options", "run.s"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("=")[0] for line in lines] == ["run.seed", "run.steps", "run.save_every"]
    assert "RL steps" in lines[1]
    assert main(["options", "rnu"]) == 2


def test_check_prints_what_would_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["check", "quickstart", f"run.folder={tmp_path}/runs", "rollout.group_size=4"]) == 0
    out = capsys.readouterr().out
    for part in ("0.45 million", "tensor 2 x pipeline 1", "16 prompts x 4 completions = 64", f"{tmp_path}/runs/"):
        assert part in out
    assert list(tmp_path.iterdir()) == []  # it starts nothing and writes nothing


@pytest.mark.parametrize("command", ["check", "train"])
def test_every_problem_is_listed_and_nothing_written(
    command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    wrong = ["rollout.group_size=1", "actor.tensr_parallel=2", "run.steps=many", "data.limit=-1"]
    assert main([command, "quickstart", f"run.folder={tmp_path}/runs", *wrong]) == 2
    captured = capsys.readouterr()
    said = captured.out if command == "check" else captured.err
    lines = said.splitlines()
    assert lines[0] == "quickstart: 4 problems"
    for number, part in enumerate(("actor.tensor_parallel", "run.steps", "data.limit", "rollout.group_size"), 1):
        assert lines[number].lstrip().startswith(f"{number}. ")
        assert part in lines[number]
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_recipe_is_one_paragraph(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "quickstrat"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "quickstart" in error
    assert error.count("\n") == 1


def test_checking_imports_no_torch() -> None:
    code = (
        "import sys; from megatron_rl.cli import main\n"
        "assert main(['check', 'quickstart', 'data.limit=-1', 'actor.tensor_parallel=3']) == 2\n"
        "import megatron_rl.launch.job\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
