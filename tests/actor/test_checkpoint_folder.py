"""Which checkpoints of a run are whole: with the list of files that is written now, and without one."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_rl.actor.checkpoint_folder import (
    FILES,
    STATE,
    all_checkpoints,
    damage,
    latest,
    list_files,
    read_sizes,
    read_state,
    set_damaged_aside,
)
from megatron_rl.errors import InputError

BIG = 3 << 20


def write(folder: Path, name: str) -> Path:
    """A checkpoint as far as its files go."""
    checkpoint = folder / name
    checkpoint.mkdir(parents=True)
    (checkpoint / STATE).write_text(json.dumps({"state": {"stage": "rl", "step": 2}, "sizes": {"tensor": 2}}))
    (checkpoint / "__0_0.distcp").write_bytes(b"w" * BIG)
    (checkpoint / "common.pt").write_bytes(b"c" * 1000)
    list_files(checkpoint)
    return checkpoint


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[500] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "file", "said"),
    [
        (cut, "__0_0.distcp", rf"__0_0\.distcp has 1000 bytes, and {BIG} were written"),
        (Path.unlink, "__0_0.distcp", r"__0_0\.distcp is missing"),
        (flip, "common.pt", r"common\.pt does not hold what was written"),
        (Path.unlink, STATE, r"state\.json is missing: the checkpoint is not complete"),
        (lambda path: path.write_text("{"), STATE, r"state\.json is damaged"),
        (lambda path: path.write_text("[1]"), FILES, r"files\.json is not the list of files"),
        (lambda path: path.write_bytes(b"\xff\xfe"), FILES, r"files\.json is not the list of files"),
    ],
)
def test_what_is_damaged_is_named(tmp_path: Path, harm: Callable[[Path], object], file: str, said: str) -> None:
    checkpoint = write(tmp_path, "step-1-000002")
    assert damage(checkpoint) is None
    assert read_state(checkpoint) == {"stage": "rl", "step": 2} and read_sizes(checkpoint) == {"tensor": 2}
    harm(checkpoint / file)
    found = damage(checkpoint)
    assert found is not None and str(tmp_path) not in found
    assert re.match(said, found), found


def test_the_newest_whole_one_is_taken_and_the_damaged_ones_keep_out_of_the_way(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write(tmp_path, f"step-1-00000{step}")
    (tmp_path / "step-1-000009.bak").mkdir()  # somebody's copy
    assert latest(tmp_path) == tmp_path / "step-1-000003"
    assert set_damaged_aside(tmp_path) == []
    cut(tmp_path / "step-1-000003/__0_0.distcp")
    cut(tmp_path / "step-1-000001/__0_0.distcp")  # older than the one that is taken: nobody looks
    (said,) = set_damaged_aside(tmp_path)
    assert "step-1-000003 is damaged (__0_0.distcp has 1000 bytes" in said and "damaged-step-1-000003" in said
    assert latest(tmp_path) == tmp_path / "step-1-000002"
    assert [c.name for c in all_checkpoints(tmp_path)] == ["step-1-000001", "step-1-000002"]
    write(tmp_path, "step-1-000003")
    cut(tmp_path / "step-1-000003/__0_0.distcp")
    assert "damaged-step-1-000003-2" in set_damaged_aside(tmp_path)[0]


def test_without_a_whole_one_the_run_does_not_begin_anew_by_itself(tmp_path: Path) -> None:
    assert set_damaged_aside(tmp_path / "none") == []
    for step in (1, 2):
        cut(write(tmp_path, f"step-1-00000{step}") / "__0_0.distcp")
    said = r"No checkpoint in .* can be continued from \(step-1-000002: __0_0.distcp has .*; step-1-000001: "
    with pytest.raises(InputError, match=said):
        set_damaged_aside(tmp_path)
    assert len(all_checkpoints(tmp_path)) == 2  # as they were


def test_torch_is_not_imported() -> None:
    code = "import sys, megatron_rl.actor.checkpoint_folder; raise SystemExit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
