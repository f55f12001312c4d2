"""What a command that takes long says, and to whom."""

import io
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_rl.commands import waiting
from megatron_rl.commands.waiting import working
from tests.resharding.convert.test_convert_resume import small_model


class Screen(io.StringIO):
    """A terminal, or none."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


def wait_for(screen: Screen, text: str) -> None:
    while not re.search(text, screen.getvalue()):
        time.sleep(0.01)


@pytest.mark.parametrize("terminal", [True, False])
def test_work_that_takes_long_says_how_far_it_is(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", screen := Screen(terminal))
    monkeypatch.setattr(waiting, "FIRST", 0.0)
    monkeypatch.setattr(waiting, "EVERY", 0.01)
    with working("reading", "chunks", 4000) as done:
        done(1000)
        done(500)
        wait_for(screen, "reading.*1500/4000" if terminal else r"reading: 1,500 of 4,000 chunks, \d+ s\n")
    with working("reading", "chunks") as done:
        done(1500)
        wait_for(screen, r"reading.*1500/\?" if terminal else r"reading: 1,500 chunks, \d+ s\n")
    with working("converting", "bytes", 8_000_000) as done:
        done(3_000_000)
        wait_for(screen, r"converting.*3\.0/8\.0 MB" if terminal else r"converting: 3 of 8 MB, \d+ s\n")
    with working("asking", "prompts", 4000) as done:
        done(1000)
        done.under_way = lambda: 700
        wait_for(screen, "asking.*1700/4000" if terminal else r"asking: 1,700 of 4,000 prompts, \d+ s\n")
        done.under_way = lambda: 0
        assert done.reached() == 1700
        done(800)
        assert done.reached() == 1800
    with working("planning"):
        wait_for(screen, "planning" if terminal else r"planning, \d+ s\n")


@pytest.mark.parametrize("terminal", [True, False])
def test_work_that_is_done_at_once_says_nothing(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", screen := Screen(terminal))
    monkeypatch.setattr(waiting, "FIRST", 3600.0)
    with working("reading", "chunks", 4) as done:
        done(4)
    with pytest.raises(KeyError), working("planning"):
        raise KeyError
    assert screen.getvalue() == ""


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_standard_streams_may_be_closed(closed: str, tmp_path: Path) -> None:
    """No file gets their numbers: what anything prints would go into it."""
    source = small_model(tmp_path / "hf")
    command = f"{sys.executable} -m megatron_rl.cli convert hf-to-megatron {source} {tmp_path}/m {closed}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ("Wrote" in done.stdout) == (">&-" not in closed.replace("2>&-", ""))
    again = subprocess.run(f"{command}", shell=True, capture_output=True, text=True)
    assert again.returncode == 2 and ("exists already" in again.stderr) == ("2>&-" not in closed)
    code = (
        "import os, sys; from megatron_rl.cli import _open_standard_streams; _open_standard_streams(); "
        "os.write(1, b'x'); os.write(2, b'x'); os.read(0, 1); print('out', flush=True); "
        f"sys.exit(os.open('{tmp_path}/x', os.O_CREAT) < 3 or os.system('true >&2'))"
    )
    assert subprocess.run(f'{sys.executable} -c "{code}" {closed}', shell=True, capture_output=True).returncode == 0
