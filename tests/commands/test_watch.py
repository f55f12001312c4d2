"""`megatron-rl watch`: a run followed by its files, written to between two looks as a run writes them."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_rl.analysis.follow import Followed
from megatron_rl.cli import main
from megatron_rl.commands.runs.watch import watch
from megatron_rl.tracking.run_folder import RunFolder
from tests.analysis.made import make_run, numbers


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def add(folder: Path, *rows: dict[str, Any], unfinished: str = "") -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows) + unfinished)


def end(folder: Path, **entries: Any) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | entries))


def between(*acts: Callable[[], None]) -> Callable[[], None]:
    """What happens while ``watch`` waits; it must have ended when there is no more."""
    left: Iterator[Callable[[], None]] = iter(acts)
    return lambda: next(left)()


def test_lines_come_until_the_run_is_complete(tmp_path: Path) -> None:
    folder, out = make_run(tmp_path / "run", [numbers(step) for step in range(1, 8)]), io.StringIO()
    acts = between(
        lambda: add(folder, unfinished=json.dumps(numbers(8))[:30]),
        lambda: add(folder, unfinished=json.dumps(numbers(8))[30:] + "\n"),
        lambda: (add(folder, numbers(9), numbers(10)), end(folder, completed={"stage": "rl", "step": 10})),
    )
    assert watch(Followed(str(folder)), out, acts) == 0
    titles, *lines, said = [line for line in out.getvalue().splitlines() if not line.startswith("no row")]
    assert titles.split()[:3] == ["rl", "step", "reward"]
    assert [line.split()[1] for line in lines] == [f"{step}/10" for step in range(3, 11)]
    assert [line.split()[-2:] for line in lines if line.split()[1] == "8/10"] == [["2", "s"]]
    assert said == f"{folder} is complete."


def test_a_run_that_failed_is_said_with_its_exit_code(tmp_path: Path) -> None:
    folder, out = make_run(tmp_path / "run", [numbers(1)]), io.StringIO()
    failed = {"code": 1, "message": "rank0 was killed by SIGKILL.", "at": "2026-01-01T00:00:00+00:00"}
    acts = between(lambda: end(folder, attempts=[{"ended": failed}]))
    assert watch(Followed(str(folder)), out, acts) == 1
    assert out.getvalue().endswith(f"{folder} has ended. rank0 was killed by SIGKILL.\n")


def test_a_run_that_is_continued_from_before_is_read_anew(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", [numbers(step) for step in range(1, 6)])
    followed = Followed(str(folder))
    (folder / "metrics.jsonl").write_text(json.dumps(numbers(1)) + "\n")
    followed.read()
    assert [row["step"] for row in followed.rows] == [1] and followed.courses["rl"] == [0.1]
    add(folder, numbers(2, reward=9.0))
    followed.read()
    assert followed.courses["rl"] == [0.1, 9.0]


def test_a_panel_on_a_terminal(tmp_path: Path) -> None:
    folder, out = make_run(tmp_path / "run", []), Terminal()
    held_out = {"stage": "eval", "step": 2, "sampled/correct": 0.75}
    acts = between(
        lambda: add(folder, numbers(1), numbers(2), held_out),
        lambda: end(folder, completed={"stage": "rl", "step": 10}),
    )
    assert watch(Followed(str(folder)), out, acts) == 0
    shown = out.getvalue()
    assert "no steps yet" in shown and "rl step 2 of 10   reward 0.200" in shown
    assert "held-out    sampled 75.0 % after rl step 2" in shown and "8 s left" in shown


def test_silence_is_said(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", [numbers(1, **{"time/step": 20.0})])
    written = (folder / "metrics.jsonl").stat().st_mtime
    now = [written + 90.0]
    followed = Followed(str(folder), lambda: now[0])
    assert followed.silence() == ""  # five steps take longer
    now[0] = written + 130.0
    assert followed.silence().startswith("no row for 2 min 10 s") and followed.silence() in followed.panel()
    end(folder, completed={"stage": "rl", "step": 10})
    assert followed.silence() == ""


def test_a_run_that_cannot_say_that_it_has_ended(tmp_path: Path) -> None:
    folder, out = make_run(tmp_path / "run", [numbers(step) for step in range(1, 10)]), io.StringIO()
    (folder / "manifest.json").unlink()
    run = RunFolder(folder)
    run.lock()
    acts = between(lambda: None, lambda: add(folder, numbers(10)), lambda: None, run.unlock)
    assert watch(Followed(str(folder)), out, acts) == 0
    said = out.getvalue().splitlines()[-1]
    assert said == (
        f"{folder} has ended: all its steps are done, and no process runs in it. Its manifest.json is missing."
    )
    assert not run.held() and Followed(str(folder)).silence() == ""
    (folder / "manifest.json").write_text('{"attempts": [{}]}')
    assert Followed(str(folder)).end() == (0, said.replace("is missing", "does not say how"))
    end(folder, attempts=[{"ended": {"code": 1, "message": "It failed."}}])
    assert Followed(str(folder)).end() == (1, f"{folder} has ended. It failed.")


def test_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path / "run", [numbers(1), numbers(2)])
    assert main(["watch", str(folder), "--once"]) == 0
    assert "rl step 2 of 10" in capsys.readouterr().out
    assert main(["watch", str(tmp_path / "none")]) == 2
