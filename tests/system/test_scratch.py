"""Folders that do not outlive their command."""

import signal
import stat
import subprocess
import sys
from pathlib import Path

from megatron_rl.system import scratch

OWNER = """
import sys, time
from pathlib import Path
from megatron_rl.system.scratch import made
with made(sys.argv[1]) as folder:
    (folder / "key").write_text("secret")
    print(folder, flush=True)
    sys.stdin.read()
"""


def owner(where: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process that has made a folder and waits for the end of its input."""
    command = [sys.executable, "-c", OWNER, str(where)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_a_folder_is_for_its_owner_alone_and_ends_with_it(tmp_path: Path) -> None:
    with scratch.made(str(tmp_path)) as folder:
        assert folder.parent == tmp_path and stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_command_left_goes_with_the_next(tmp_path: Path) -> None:
    (tmp_path / "mrl-of-somebody-else").mkdir()
    (living, kept), (killed, left) = owner(tmp_path), owner(tmp_path)
    killed.send_signal(signal.SIGKILL)
    killed.wait(30)
    assert (left / "key").exists()
    with scratch.made(str(tmp_path)):
        assert not left.exists() and (kept / "key").exists()
    living.communicate("", timeout=30)
    assert [path.name for path in tmp_path.iterdir()] == ["mrl-of-somebody-else"]
