"""Files and folders that are the old ones or the new ones, on the disk."""

import errno
import os
from pathlib import Path

import pytest

from megatron_rl.system import files


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is flushed and renamed, in order."""
    seen: list[str] = []
    fsync, rename, replace = os.fsync, Path.rename, Path.replace

    def flushed(handle: int) -> None:
        seen.append(f"flush {Path(os.readlink(f'/proc/self/fd/{handle}')).name}")
        fsync(handle)

    def renamed(path: Path, target: Path) -> Path:
        seen.append(f"name {Path(target).name}")
        return rename(path, target)

    def replaced(path: Path, target: Path) -> Path:
        seen.append(f"name {Path(target).name}")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(Path, "rename", renamed)
    monkeypatch.setattr(Path, "replace", replaced)
    return seen


def test_a_folder_gets_its_name_between_its_own_flush_and_its_parents(tmp_path: Path, events: list[str]) -> None:
    folder = tmp_path / ".new"
    folder.mkdir()
    (folder / "weights").write_bytes(b"1")
    files.rename_folder(folder, tmp_path / "new")
    assert events == ["flush weights", "flush .new", "name new", f"flush {tmp_path.name}"]
    assert (tmp_path / "new/weights").read_bytes() == b"1" and not folder.exists()


def test_a_text_is_on_the_disk_under_its_name(tmp_path: Path, events: list[str]) -> None:
    files.write_text(tmp_path / "manifest.json", "é")
    assert events[0].startswith("flush .manifest.json.")
    assert events[1:] == ["name manifest.json", f"flush {tmp_path.name}"]
    assert (tmp_path / "manifest.json").read_bytes() == "é".encode()


@pytest.mark.parametrize(("number", "raises"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_file_systems_that_flush_no_folders_are_put_up_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, raises: bool
) -> None:
    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    if raises:
        with pytest.raises(OSError, match="Input/output"):
            files.flush(tmp_path)
    else:
        files.flush(tmp_path)


def test_what_a_killed_attempt_left_beside_a_folder_goes_with_the_next(tmp_path: Path) -> None:
    left = files.folder_beside(tmp_path / "hf")
    (left / "weights").write_bytes(b"half")
    beside = files.folder_beside(tmp_path / "hf")
    assert beside == left and list(beside.iterdir()) == []
    files.rename_folder(beside, tmp_path / "hf")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
