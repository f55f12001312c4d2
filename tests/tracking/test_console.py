"""What a person sees."""

import io
from pathlib import Path

import pytest

from megatron_rl.tracking.console import RL_COLUMNS, Progress, duration, summary_table, where_next
from megatron_rl.tracking.run_folder import RunFolder


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (125, "2 min 05 s"),
        (3600, "1 h 00 min"),
        (7620, "2 h 07 min"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_progress_lines_are_aligned_under_their_titles() -> None:
    out = io.StringIO()
    progress = Progress("rl", 2, RL_COLUMNS, out=out)
    progress.step(
        0, {"reward": 0.5, "accuracy": 0.25, "length": 40.04, "tokens_per_second": 12345.6, "time/swap": 0.0042}
    )
    progress.step(1, {"reward": 1.0})
    head, first, second = out.getvalue().splitlines()
    assert head.split() == ["rl", "step", "reward", "accuracy", "length", "tokens/s", "swap", "ms", "left"]
    assert first.split()[:7] == ["rl", "1/2", "0.500", "0.250", "40.0", "12,346", "4.2"]
    assert first.split()[-1] == "-"  # no rate yet
    assert second.split() == ["rl", "2/2", "1.000", "-", "-", "-", "-", "0", "s"]
    assert len(head) == len(first) == len(second)


def test_a_long_stage_prints_few_lines_with_the_first_and_the_last() -> None:
    out = io.StringIO()
    progress = Progress("sft", 605, (), lines=10, out=out)
    for step in range(605):
        progress.step(step, {})
    done = [line.split()[1] for line in out.getvalue().splitlines()[1:]]
    assert done == [f"{n}/605" for n in [1, *range(60, 601, 60), 605]]


def test_summary_table() -> None:
    rows = {"accuracy": {"before": "0.01", "after RL": "0.97"}, "swaps proved": {"after RL": "41"}}
    table = summary_table(rows, ["before", "after SFT", "after RL"], title="Run mine")
    lines = [line.split() for line in table.splitlines()]
    assert lines[0] == ["Run", "mine"]
    assert ["before", "after", "SFT", "after", "RL"] in lines
    assert ["accuracy", "0.01", "0.97"] in lines
    assert ["swaps", "proved", "41"] in lines


def test_where_next_names_what_exists(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.metrics_file.touch()
    run.export.mkdir()
    text = where_next(run)
    assert text.startswith("Where to look next:")
    assert str(run.metrics_file) in text and str(run.export) in text
    assert "completions" not in text and "tensorboard" not in text
