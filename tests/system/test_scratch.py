"""Folders that do not outlive their command."""

import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_rl.errors import InputError
from megatron_rl.system import scratch
from tests.conftest import PATIENCE

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
    killed.wait(PATIENCE)
    assert (left / "key").exists()
    with scratch.made(str(tmp_path)):
        assert not left.exists() and (kept / "key").exists()
    living.communicate("", timeout=PATIENCE)
    assert [path.name for path in tmp_path.iterdir()] == ["mrl-of-somebody-else"]


def test_the_first_place_that_can_hold_a_socket_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = Path("/proc/self/cwd")  # short, and the folder below
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path / ("long" * 20)))
    monkeypatch.delenv("TEMP", raising=False)
    monkeypatch.setenv("TMP", "/proc/1/nothing")
    monkeypatch.setattr(scratch, "_OFFER", (str(good),))
    with scratch.made() as folder:
        assert folder.parent == good
        assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(scratch, "_OFFER", ())
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    said = r"no place for the sockets .*long: its path is too long for sockets; /proc/1/nothing: .* set TMPDIR"
    with pytest.raises(InputError, match=said), scratch.made():
        pass


def test_libraries_are_sent_elsewhere_only_where_they_cannot_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HOME", "XDG_CACHE_HOME", *scratch._CACHES):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    assert scratch.caches(tmp_path) == {}
    assert list(home.iterdir()) == []  # nothing is left of the trial
    monkeypatch.setenv("HOME", "/proc/nohome")
    monkeypatch.setenv("TRITON_CACHE_DIR", "mine")
    found = scratch.caches(tmp_path)
    assert found["HF_DATASETS_CACHE"] == f"{tmp_path}/caches/hf_datasets_cache"
    assert "TRITON_CACHE_DIR" not in found
    monkeypatch.setenv("HF_HOME", str(home))  # a hub of its own, which can be written
    assert "HF_DATASETS_CACHE" not in scratch.caches(tmp_path) and "MPLCONFIGDIR" in scratch.caches(tmp_path)


def test_temporary_files_go_to_the_scratch_folder_where_a_socket_has_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/tmp")
    assert scratch.temporary(tmp_path) == {}
    monkeypatch.setattr("tempfile.tempdir", "/tmp/" + "a" * 60)
    assert scratch.temporary(tmp_path) == {"TMPDIR": str(tmp_path)}
