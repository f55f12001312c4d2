"""What a person sees while nothing is printed: on a terminal and elsewhere."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_rl.system.supervision.screen import LIVE, SHOWN, Screen, activity, duration, panel


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


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


@given(st.lists(st.tuples(st.booleans(), st.text("abc \té", max_size=5))), st.lists(st.integers(1, 7), min_size=1))
def test_lines_pass_and_activities_do_not_however_they_are_cut(lines: list[tuple[bool, str]], cuts: list[int]) -> None:
    out = io.StringIO()
    screen = Screen(out)
    text = "".join(f"{chr(0x1E) if is_activity else ''}{line}\n" for is_activity, line in lines)
    passed = "".join(f"{line}\n" for is_activity, line in lines if not is_activity)
    returned, at = "", 0
    while at < len(text):
        for size in cuts:
            returned += screen.write(text[at : at + size])
            at += size
    assert out.getvalue() == returned == passed


def test_a_terminal_shows_what_goes_on_in_place_until_there_is_a_line() -> None:
    out, clock = Terminal(), Clock()
    screen = Screen(out, "starting", clock)
    assert screen.tick() == 2.0
    clock.now = 2.0
    assert screen.tick() == 1.0
    screen.write("\x1ebuilding the actor\n")
    clock.now = 65.0
    screen.tick()
    screen.write("step 1\n")
    clock.now = 66.0
    assert screen.tick() == 1.0  # shown again when two seconds are over
    shown = out.getvalue().split("\r\x1b[K")
    assert shown == ["", "… starting (2 s)", "… building the actor (1 min 03 s)", "step 1\n"]


def test_elsewhere_a_line_comes_after_half_a_minute_and_then_more_and_more_rarely() -> None:
    out, clock = io.StringIO(), Clock()
    screen = Screen(out, "starting", clock)
    for second in range(500):
        clock.now = float(second)
        if second == 300:
            screen.line("step 1")
        screen.tick()
    said = [line for line in out.getvalue().splitlines() if line.startswith("…")]
    assert said[:4] == [f"… starting ({text})" for text in ("30 s", "1 min 00 s", "2 min 00 s", "4 min 00 s")]
    assert said[4:] == [f"… starting ({text})" for text in ("5 min 30 s", "6 min 00 s", "7 min 00 s")]


def test_an_unfinished_line_is_left_alone() -> None:
    out, clock = Terminal(), Clock()
    screen = Screen(out, "starting", clock)
    screen.write("loading")
    clock.now = 100.0
    screen.tick()
    screen.write(" is done\n")
    assert out.getvalue() == "loading is done\n"


def test_only_processes_that_are_watched_say_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.delenv(SHOWN, raising=False)
    activity("building")
    assert capsys.readouterr().out == ""
    monkeypatch.setenv(SHOWN, "1")
    activity("building")
    assert Screen(io.StringIO()).write(capsys.readouterr().out) == ""


def on_terminal(text: str) -> list[str]:
    """What a terminal shows in the end of what was written to it."""
    lines, at = [""], 0
    for piece in text.replace("\x1b[1A", "\x01").replace("\r\x1b[K", "\x02").replace("\x1b[K", "\x02"):
        if piece == "\n":
            at += 1
            lines += [""] * (at == len(lines))
        elif piece == "\x01":
            at -= 1
        else:
            lines[at] = "" if piece == "\x02" else lines[at] + piece
    return lines


def test_a_panel_stays_at_the_foot_of_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv(LIVE, "1")
    out, clock = Terminal(), Clock()
    screen = Screen(out, "starting", clock)
    panel("step 1\nreward 0.5")
    assert screen.write(capsys.readouterr().out + "a line\n") == "a line\n"
    assert screen.tick() == 1.0
    assert on_terminal(out.getvalue()) == ["a line", "step 1", "reward 0.5", "… starting (0 s)"]
    clock.now = 3.0
    panel("step 2")
    screen.write(capsys.readouterr().out)
    screen.tick()
    assert on_terminal(out.getvalue()) == ["a line", "step 2", "… starting (3 s)", ""]
    screen.line("another")
    screen.show("given\nhere")
    screen.tick()
    assert on_terminal(out.getvalue()) == ["a line", "another", "given", "here", "… starting (3 s)"]
    screen.close()
    assert [line for line in on_terminal(out.getvalue()) if line] == ["a line", "another"]


def test_without_a_terminal_there_is_no_panel(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.delenv(LIVE, raising=False)
    panel("step 1")
    assert capsys.readouterr().out == ""
    out = io.StringIO()
    screen = Screen(out, "starting", Clock())
    screen.write("\x1e\x1dstep 1\x1fmore\n")
    screen.tick()
    assert out.getvalue() == ""
