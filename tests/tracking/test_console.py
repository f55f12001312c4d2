"""What a person sees."""

import io
from pathlib import Path

from megatron_rl.system.processes import program
from megatron_rl.tracking.console import RL_COLUMNS, Progress, heldout_table, summary_table, where_next
from megatron_rl.tracking.run_folder import EXPORTED, RunFolder


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


def test_the_held_out_table_has_what_was_evaluated() -> None:
    before = {"sampled/correct": 0.125, "sampled/length": 40.0, "greedy/correct": 0.25, "weight_version": 0.0}
    evaluations = {"before": {k: v for k, v in before.items() if k != "weight_version"}, "step 10": before}
    table = heldout_table(evaluations | {"after RL": {"sampled/correct": 1.0}}, 12)
    lines = [line.split() for line in table.splitlines()]
    assert lines[0] == ["Held-out", "(12", "prompts)"]
    assert ["before", "after", "RL"] in lines
    assert ["sampled,", "correct", "12.5", "%", "100.0", "%"] in lines
    assert ["greedy,", "correct", "25.0", "%"] in lines
    assert "length" not in table and "step 10" not in table


def test_without_held_out_data_there_is_no_table() -> None:
    assert heldout_table({}, 0) == heldout_table({"before": {}, "after RL": {}}, 0) == ""


def test_where_next_names_what_exists(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.metrics_file.write_text("{}\n")
    run.completions_file.touch()  # nothing was drawn
    run.export.mkdir()
    text = where_next(run, "rl", 6)
    assert text.startswith("Where to look next:")
    assert str(run.metrics_file) in text and str(run.export) in text
    assert text.endswith(f"\n  one page about all of it {' ' * 11}{program()} report {tmp_path}")
    assert "completions" not in text and "tensorboard" not in text
    assert f"an earlier policy {' ' * 18}{run.export}" in text
    (run.export / EXPORTED).write_text('{"step": 5}')
    assert f"an earlier policy, of step 5 {' ' * 7}{run.export}" in where_next(run, "rl", 6)
    assert f"the policy (transformers reads it)  {run.export}" in where_next(run, "rl", 5)
