"""`megatron-rl analyze` and `megatron-rl report`, as they are typed."""

import json
from pathlib import Path

import pytest

from megatron_rl.cli import main
from tests.analysis.made import completion, evaluated, make_run, numbers


def made(folder: Path) -> Path:
    rows = [{"stage": "eval", "step": 0, "sampled/correct": 0.1}, *(numbers(step) for step in range(1, 11))]
    texts = [completion(step, i) for step in range(1, 11) for i in range(4)]
    return make_run(folder, rows, [*texts, evaluated("after RL", 10, 0, right=True)], complete=10)


def test_analyze_prints_tables_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "found.json"
    assert main(["analyze", str(made(tmp_path / "run")), "--json", str(out)]) == 0
    said = capsys.readouterr().out
    for title in (
        "Languages",
        "Mean length over training",
        "Accuracy by num_clues",
        "Stages of social",
        "Signs of reward hacking",
    ):
        assert title in said
    found = json.loads(out.read_text())
    assert found["languages"]["think"]["english"] == 41 and found["completions"] == 41
    assert found["stages"]["all"] == 1.0 and found["stages"]["over_time"]["all"] == [1.0] * 10
    assert [row["accuracy"] for row in found["accuracy_by"]["num_clues"]] == [0.5] * 4
    assert found["notes"] == []


def test_analyze_says_what_it_has_nothing_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["analyze", str(make_run(tmp_path / "run", []))]) == 0
    said = capsys.readouterr().out
    assert said.startswith("run: going on or killed, 0 steps")
    assert "note: There are no completions" in said and "note: metrics.jsonl has no rows yet" in said
    assert "Languages" not in said


def test_bad_input_of_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(made(tmp_path / "run"))
    assert main(["analyze", str(tmp_path)]) == 2
    assert main(["analyze", run, "--json", str(tmp_path / "none" / "a.json")]) == 2
    assert main(["report", run, "--out", str(tmp_path / "page.pdf")]) == 2
    assert main(["report", run, "--out", str(tmp_path / "none" / "page.html")]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    said = shown.err
    assert "must end in .html" in said and said.count("its folder does not exist") == 2 and "has neither" in said
    assert main(["report", str(tmp_path / "no run")]) == 2
    assert f"{tmp_path / 'no run'} does not exist: give the folder of a run" in capsys.readouterr().err


def test_report_says_where_the_page_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("plotly")
    run = made(tmp_path / "run")
    assert main(["report", str(run)]) == 0
    said = capsys.readouterr().out
    assert str(run / "report.html") in said and "note:" not in said
    assert (run / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_report_says_what_it_leaves_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("plotly")
    run, other = made(tmp_path / "run"), make_run(tmp_path / "other", [numbers(1)])
    for name in ("metrics.jsonl", "completions.jsonl"):
        with (run / name).open("a") as file:
            file.write("broken\n")
    assert main(["report", str(run)]) == 0
    _, *notes = capsys.readouterr().out.splitlines()
    assert notes == [f"note: {name}.jsonl: 1 damaged lines are left out." for name in ("metrics", "completions")]
    assert main(["report", str(run), str(other)]) == 0
    said = capsys.readouterr().out
    assert "note: run: metrics.jsonl: 1 damaged" in said
    assert "note: other: The run is not complete (1 of 10 steps): it still goes on, or was killed." in said
