"""The command line as a newcomer meets it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_rl import __version__
from megatron_rl.cli import main
from megatron_rl.settings.load import options
from megatron_rl.system import machine
from tests.conftest import ROOT


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
    names = ["run.seed", "run.steps", "run.save_every", "run.start_from", "run.start_optimizer"]
    assert [line.split("=")[0] for line in lines] == names
    assert "RL steps" in lines[1]
    assert main(["options", "rnu"]) == 2


OWN_TASK = """
from megatron_rl.data.tasks.false_belief import make_false_belief, write_tokenizer

def make(config, seed, tokenizer):
    task = make_false_belief(config, seed, tokenizer)
    task.notes = {"rows with derived options": 3}
    return task
"""


def test_check_prints_what_would_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With what a task of one's own, in the current folder, says of its rows, and warnings, which refuse nothing."""
    (tmp_path / "noting_task.py").write_text(OWN_TASK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(machine, "gpus", lambda: (80 << 30,) * 2)
    own = ["data.task=noting_task.make", "rollout.embedded.true_on_policy=false"]
    assert main(["check", "quickstart", "rollout.group_size=4", *own]) == 0
    out = capsys.readouterr().out
    for part in ("0.45 million", "2 on 2 GPUs: tensor 2 x pipeline 1", "16 prompts x 4 completions = 64", "runs/"):
        assert part in out
    lines = out.splitlines()
    assert lines[-2].split() == ["note", "rows", "with", "derived", "options:", "3"]
    assert lines[-1].startswith("warning: rollout.engine=embedded generates on the CPU")
    assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == ["noting_task.py"]


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


@pytest.mark.parametrize("arguments", [["options"], ["recipes"], ["check", "quickstart", "data.limit=-1"]])
def test_a_reader_that_has_gone(arguments: list[str]) -> None:
    """Whatever is printed, nothing is said about it, and the exit code is that of SIGPIPE."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "megatron_rl.cli", *arguments],
        cwd=ROOT,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_a_full_disk_is_one_sentence() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "megatron_rl.cli", "recipes"],
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 2
    assert done.stderr.startswith("error: The disk is full.") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams(closed: str) -> None:
    """What is printed goes nowhere, not into the first file that gets the stream's number."""
    command = f"{sys.executable} -m megatron_rl.cli check quickstart data.limit=-1 {closed}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    shown = ">&-" not in closed.replace("2>&-", "")
    assert done.stdout.startswith("quickstart: 1 problem\n") if shown else done.stdout == ""
    assert done.stderr == ""


def test_bad_input_ends_every_command_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["train", "quickstart", "data.limit=-1"],
        ["check", "quickstart", "data.limit=-1"],
        ["plan", "quickstart", "rollout.engines=0"],
        ["engine", "quickstart", "rollout.threads=0"],
        ["serve", str(tmp_path)],
        ["options", "rnu"],
        ["convert", "inspect", str(tmp_path)],
    ):
        assert main(arguments) == 2, arguments
    with pytest.raises(SystemExit) as exit_:
        main(["nonsense"])
    assert exit_.value.code == 2
    capsys.readouterr()


def test_the_list_of_options_fits_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["options"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert sum("=" in line.partition(" ")[0] for line in lines) == len(options())
    words = " ".join("\n".join(lines).split())
    assert "[auto | shared_memory | cuda_ipc | gloo | nccl | files]" in words


def test_the_documented_options_are_these(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["options", "--markdown"]) == 0
    assert (ROOT / "docs" / "options.md").read_text() == capsys.readouterr().out, "write it anew with this command"


def test_a_table_of_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["options", "--markdown", "run"]) == 0
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.startswith("## ")] == ["## run"]
    assert "| `run.keep` | `2` | checkpoints kept | 1 or more |" in out
    assert "| `run.resume` | `auto` | auto: continue the run in the folder \\| never:" in out


def test_a_command_that_does_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["trian", "quickstart"])
    assert "there is no command 'trian'; did you mean train?" in capsys.readouterr().err
    assert main([]) == 2 and "  train " in capsys.readouterr().err


def test_seeds_are_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "quickstart", "--seeds", "0:2", "run.seed=4"]) == 2
    assert "run.seed=4 and --seeds 0:2 both say which seeds" in capsys.readouterr().err
