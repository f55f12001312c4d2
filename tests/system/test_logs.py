"""The end of a large log."""

from pathlib import Path

from megatron_rl.system.processes import last_error
from megatron_rl.system.supervision.logs import last_lines, told


def test_a_log_is_read_from_its_end(tmp_path: Path) -> None:
    """However long it is; a line that is cut by where reading begins is no line."""
    log = tmp_path / "log"
    with log.open("wb") as file:
        file.truncate(1 << 40)  # nearly all of it a hole: whoever reads it whole needs a terabyte
        file.seek(0, 2)
        file.writelines(b"line %d of a long run\n" % number for number in range(100_000))
        file.write(b"error: why\n  it ended\n")
    lines = last_lines(log)
    assert (1 << 18) - 100 < sum(len(line) + 1 for line in lines) <= 1 << 18
    assert all(line.startswith(("line ", "error: ", "  ")) for line in lines)
    assert last_error(lines) == "why\n  it ended"
    assert told(lines, 2) == "\n  error: why\n    it ended"


def test_what_was_written_since(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"before\nsince \xff\n" + b"x" * 1000)
    assert last_lines(log) == ["before", "since \ufffd", "x" * 1000]
    assert last_lines(log, 7) == ["since \ufffd", "x" * 1000]
    assert last_lines(log, log.stat().st_size) == [] and told([], 3) == ""
    assert told(last_lines(log), 1) == "\n  " + "x" * 400


def test_one_line_that_is_longer_than_what_is_read(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("a" * (1 << 19))
    assert [len(line) for line in last_lines(log)] == [1 << 18]
