"""How a process of ours begins and ends."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

ENDS = """
from megatron_rl.errors import InputError, RunError
from megatron_rl.system.processes import run
def main():
    raise {error}
run(main)
"""


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        ("InputError('row 3: no answer.')", 2, "error: row 3: no answer.\n"),
        ("RunError('Step 7: the loss is nan.')", 3, "error: Step 7: the loss is nan.\n"),
        (
            "PermissionError(13, 'Permission denied', '/runs/a')",
            2,
            "error: /runs/a cannot be used: Permission denied.\n",
        ),
    ],
)
def test_what_people_are_told_is_one_paragraph(error: str, code: int, said: str) -> None:
    done = subprocess.run([sys.executable, "-c", ENDS.format(error=error)], capture_output=True, encoding="utf-8")
    assert (done.returncode, done.stderr) == (code, said)


def test_our_own_faults_keep_their_traceback() -> None:
    code = ENDS.format(error="FileNotFoundError(2, 'No such file', '/gone')")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8")
    assert done.returncode == 1 and "Traceback" in done.stderr


SPEAKS = """
import os, subprocess, sys
from megatron_rl.system.processes import speak_utf8
speak_utf8()
print("…ü", sys.getfilesystemencoding(), os.path.exists(sys.argv[1]), flush=True)
child = 'import sys; print("…", sys.stdin.read())'
done = subprocess.run([sys.executable, "-c", child], input="é", capture_output=True, encoding="utf-8")
print(done.stdout == "… é\\n")
"""


def speak(folder: Path, **env: str) -> bytes:
    (folder / "ü").touch()
    (folder / "speaks.py").write_text(SPEAKS, encoding="utf-8")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG", "PYTHON"))}
    command = [sys.executable, folder / "speaks.py", folder / "ü"]
    return subprocess.run(
        command, env=kept | {"PYTHONPATH": str(ROOT)} | env, stdout=subprocess.PIPE, check=True
    ).stdout


def test_a_latin_1_locale_does_not_reach_our_files_and_pipes(tmp_path: Path) -> None:
    if not shutil.which("localedef"):
        pytest.skip("needs localedef")
    made = ["localedef", "-i", "en_US", "-f", "ISO-8859-1", tmp_path / "en_US.ISO-8859-1"]
    if subprocess.run(made, capture_output=True).returncode:
        pytest.skip("the C library has no sources of locales here")
    printed = speak(tmp_path, LOCPATH=str(tmp_path), LC_ALL="en_US.ISO-8859-1")
    assert printed == b"?\xfc utf-8 True\nTrue\n"  # the terminal's own encoding


@pytest.mark.parametrize("env", [{"LC_ALL": "C"}, {"LC_ALL": "POSIX"}, {"LC_ALL": "C.UTF-8"}])
def test_others_are_utf_8_anyhow(tmp_path: Path, env: dict[str, str]) -> None:
    assert speak(tmp_path, **env).decode() == "…ü utf-8 True\nTrue\n"


def test_output_that_takes_no_such_characters_does_not_end_the_command(tmp_path: Path) -> None:
    assert speak(tmp_path, LC_ALL="C.UTF-8", PYTHONIOENCODING="ascii") == b"?? utf-8 True\nTrue\n"


def test_what_has_settled_is_freed_when_it_is_gone() -> None:
    """Also what refers to itself."""
    code = """
import gc, weakref
from megatron_rl.system.processes import settle
class Optimizer:
    pass
one = Optimizer()
one.hook = one
gone = weakref.ref(one)
settle()
assert gc.get_freeze_count()
del one
gc.collect()
assert gone() is not None
settle()
assert gone() is None
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
