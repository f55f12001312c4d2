"""Runs as they are found: whole, going on, cut off, damaged."""

import json
from pathlib import Path

import pytest

from megatron_rl.analysis.completions import read_completions
from megatron_rl.analysis.lines import Lines, at
from megatron_rl.analysis.recorded import flat, read_run
from megatron_rl.errors import InputError
from tests.analysis.made import completion, make_run, numbers


def test_a_complete_run_has_nothing_to_be_said_of(tmp_path: Path) -> None:
    rows = [{"stage": "eval", "step": 0, "sampled/correct": 0.0}, *(numbers(step) for step in range(1, 11))]
    rows.append({"stage": "eval", "step": 10, "sampled/correct": 0.9, "time/evaluate": 3.0})
    run = read_run(str(make_run(tmp_path / "a", rows, [completion(1, 0)], complete=10)))
    assert (run.name, run.state, run.steps, run.seed, run.main) == ("a", "complete", (10, 10), 0, "rl")
    assert [row["after"] for row in run.evaluations] == ["", "rl"]
    assert run.seconds == 23.0
    assert len(read_completions(run)) == 1 and run.notes == []


def test_a_run_that_goes_on_ends_within_a_line(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a", [numbers(1), numbers(2)], [completion(1, 0), completion(1, 1)])
    for name in ("metrics.jsonl", "completions.jsonl"):
        with (folder / name).open("a") as file:
            file.write('{"stage": "rl", "step": 3, "rew')
    run = read_run(str(folder))
    assert run.state == "going on or killed" and run.steps == (2, 10)
    assert len(read_completions(run)) == 2
    assert [note.partition(" ")[0] for note in run.notes] == ["metrics.jsonl", "The", "completions.jsonl"]
    assert "2 of 10 steps" in run.notes[1]


def test_damaged_lines_are_counted_and_later_rows_of_a_step_count(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a", [numbers(1), numbers(2), numbers(2, reward=7.0), {"stage": "none", "step": 1}])
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(b"\xff\xfe broken\n[1, 2]\n" + json.dumps(numbers(3)).encode() + b"\n")
    run = read_run(str(folder))
    assert [row["reward"] for row in run.rows["rl"]] == [0.1, 7.0, 0.3]
    said = " ".join(run.notes)
    assert "1 steps stand twice" in said and "metrics.jsonl: 3 damaged lines" in said


def test_missing_completions_are_said(tmp_path: Path) -> None:
    run = read_run(str(make_run(tmp_path / "a", [numbers(1)], complete=10)))
    assert read_completions(run) == []
    assert "There are no completions (completions.jsonl does not exist)" in run.notes[-1]
    (tmp_path / "a" / "completions.jsonl").write_text('{"step": 1}\n')
    assert read_completions(run) == [] and "1 rows without prompt and response" in run.notes[-1]


def test_how_a_run_ended_is_read_from_its_last_attempt(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a", [numbers(1)])
    ended = {"code": 1, "message": "rank0 failed", "at": "2026-01-01T00:00:00+00:00"}
    (folder / "manifest.json").write_text(json.dumps({"attempts": [{}, {"ended": ended}]}))
    run = read_run(str(folder))
    assert run.state == "ended"
    assert run.notes == [
        "The run ended after 1 of 10 steps: rank0 failed",
        "The run was continued: it took 2 attempts.",
    ]


def test_damaged_manifest_and_configuration_are_said(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a", [numbers(1)])
    (folder / "manifest.json").write_text("{")
    (folder / "config.yaml").write_text("run: [")
    run = read_run(str(folder))
    assert run.options == {} and run.manifest == {}
    assert any("config.yaml cannot be read" in note for note in run.notes)
    assert any("manifest.json is damaged" in note for note in run.notes)


def test_a_folder_that_is_no_run_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has neither"):
        read_run(str(tmp_path))
    with pytest.raises(InputError, match="does not exist"):
        read_run(str(tmp_path / "none"))


def test_lines_go_on_where_they_stopped(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    file.write_bytes('{"a": "é"}\n{"a": 2}\n{"a"'.encode())
    lines = Lines(file)
    assert [row["a"] for _, row in lines] == ["é", 2] and lines.unfinished
    with file.open("ab") as more:
        more.write(b": 3}\n")
    offsets = [(offset, row["a"]) for offset, row in lines]
    assert [value for _, value in offsets] == [3] and not lines.unfinished and lines.damaged == 0
    assert [row["a"] for row in at(file, [offsets[0][0], 0])] == [3, "é"]


def test_flat() -> None:
    assert flat({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}
