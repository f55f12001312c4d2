"""Conversions that are killed, interrupted or in each other's way: they go on, and give the same."""

import fcntl
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_rl.cli import main
from megatron_rl.errors import InputError
from megatron_rl.resharding.convert.journal import NAME, Journal
from megatron_rl.resharding.convert.run import Conversion
from megatron_rl.resharding.convert.targets import MegatronTarget
from megatron_rl.resharding.folders.hf import open_stored, read_hf_config
from megatron_rl.resharding.layout import ParallelSizes
from tests.conftest import PATIENCE
from tests.resharding.folders.test_hf import CONFIG, MOE, write_folder
from tests.resharding.reference import hf_tensors

# Converts in small parts, and is sent a signal when so many of them are reported done (arguments 4 and 5; 0: never).
CONVERT = """
import os, signal, sys
from itertools import count
from megatron_rl.cli import main
from megatron_rl.resharding.convert import parts, run
from megatron_rl.commands import convert, waiting
waiting.FIRST = 3600  # seconds until it says how far it is
source, target, kind, number, sent = sys.argv[1:6]
parts.PART, parts.SHORTEST_RUN, parts.BAND = 4096, 256, 1024
begin = run.Conversion.run
reports = count()  # the first is what an earlier attempt did
def report(size):
    if next(reports) == int(number):
        os.kill(os.getpid(), int(sent))
if int(number):
    run.Conversion.run = lambda self, folder, progress, sync: begin(self, folder, report, sync=sync)
sys.exit(main(["convert", kind, source, target, *sys.argv[6:]]))
"""


def child(
    source: Path, target: Path, kind: str, parts: int, *options: str, sent: signal.Signals = signal.SIGKILL
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CONVERT, str(source), str(target), kind, str(parts), str(int(sent)), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def small_model(folder: Path, config: dict[str, Any] = MOE, files: int = 3) -> Path:
    return write_folder(folder, hf_tensors(config, tags=False), config, files)


@pytest.mark.parametrize(
    ("kind", "cast"), [("hf-to-megatron", []), ("megatron-to-hf", []), ("megatron-to-hf", ["--dtype", "bfloat16"])]
)
def test_killed_conversions_go_on_and_give_the_same(kind: str, cast: list[str], tmp_path: Path) -> None:
    """With whatever threads and memory each attempt works."""
    config = MOE | {"hidden_size": 64, "moe_intermediate_size": 48}
    source = small_model(tmp_path / "hf", config)
    options = ["--tensor-parallel", "2"]
    assert main(["convert", "hf-to-megatron", str(source), str(tmp_path / "m"), *options]) == 0
    if kind == "megatron-to-hf":
        source, options = tmp_path / "m", ["--max-shard-size", "100kB", *cast]
    assert child(source, tmp_path / "whole", kind, 0, *options).returncode == 0
    numbers, target = random.Random(7), tmp_path / "target"
    partial = tmp_path / ".target.partial"
    kills, done = 0, 0
    for attempt in range(40):  # later and later, so that it comes to an end
        how = [f"--threads={numbers.randint(1, 4)}", f"--buffer-size={numbers.choice(('64MiB', '1GiB'))}"]
        result = child(source, target, kind, numbers.randint(1, 5) * (attempt + 1), *options, *how)
        if result.returncode == 0:
            break
        assert result.returncode == -9, result.stderr
        assert not target.exists() and not (partial / ".metadata").exists() and not (partial / "config.json").exists()
        kills += 1
        journal = partial / "conversion.journal"
        done = max(done, journal.read_text().count("part ") if journal.exists() else 0)
    assert kills >= 2 and done >= 2, "the process was never killed at work"
    assert "continued where it was" in result.stdout
    assert contents(target) == contents(tmp_path / "whole")
    assert not partial.exists()


def test_what_a_killed_conversion_left_is_not_mixed_with_another(tmp_path: Path) -> None:
    source, target = small_model(tmp_path / "hf"), tmp_path / "target"
    partial = tmp_path / ".target.partial"
    assert child(source, target, "hf-to-megatron", 2).returncode == -9
    journal = (partial / "conversion.journal").read_text().splitlines()
    assert main(["convert", "hf-to-megatron", str(source), str(tmp_path / "other"), "--tensor-parallel", "2"]) == 0
    assert main(["convert", "hf-to-megatron", str(source), str(target), "--tensor-parallel", "2"]) == 0
    assert contents(target) == contents(tmp_path / "other") and json.loads(journal[0])["identity"]


def test_after_a_reboot_only_flushed_files_count(tmp_path: Path) -> None:
    head = {"identity": "x", "boot": "another"}
    lines = [json.dumps(head), "part 0.", "part 1.", "file a.", "part 2.", "par"]
    (tmp_path / "conversion.journal").write_text("\n".join(lines))
    journal = Journal(tmp_path, "x")
    journal.keep({0: {"a"}, 1: {"a", "b"}, 2: {"b"}})
    assert journal.resumed and journal.parts == {0} and journal.files == {"a"}
    journal.close()
    again = Journal(tmp_path, "y")
    assert not again.resumed and not again.parts


def test_a_line_that_a_full_disk_cut_off_swallows_none(tmp_path: Path) -> None:
    """Behind half an entry the next one begins a line of its own; the part of the half one is made again."""
    journal = Journal(tmp_path, "x")
    journal.part(1)
    journal.close()
    with journal.path.open("a") as file:
        file.write("part 2")
    for number in (3, 4):
        again = Journal(tmp_path, "x")
        again.part(number)
        again.close()
    last = Journal(tmp_path, "x")
    assert last.resumed and last.parts == {1, 3, 4}
    last.close()


def test_two_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = small_model(tmp_path / "source", CONFIG)
    other = Journal(tmp_path / ".target.partial", "x")
    assert main(["convert", "hf-to-megatron", str(source), str(tmp_path / "target")]) == 2
    assert "Another process is converting into" in capsys.readouterr().err
    other.close()
    assert main(["convert", "hf-to-megatron", str(source), str(tmp_path / "target")]) == 0


def test_two_after_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between opening the journal and locking it, the process that held it may have finished."""
    folder, lock = tmp_path / ".target.partial", fcntl.flock
    Journal(folder, "x").close()

    def late(handle: int, how: int) -> None:
        if not (tmp_path / "target").exists():
            folder.rename(tmp_path / "target")
            (tmp_path / "target" / NAME).unlink()
        lock(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    journal = Journal(folder, "x")
    assert not journal.resumed and os.path.samestat(os.fstat(journal._handle), (folder / NAME).stat())
    journal.close()


def test_a_target_that_appears_meanwhile_is_not_touched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = small_model(tmp_path / "source", CONFIG), tmp_path / "target"
    hf_config = read_hf_config(source)
    stored = open_stored(source, hf_config)
    conversion = Conversion(stored, MegatronTarget(stored, ParallelSizes(), stored.dtypes), buffer=1 << 28, threads=2)
    with pytest.raises(InputError, match="target exists already"):
        conversion.run(target, lambda size: target.mkdir(exist_ok=True))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source", "target"] and not contents(target)


def test_an_interrupted_conversion_says_what_stays(tmp_path: Path) -> None:
    source, target = small_model(tmp_path / "source"), tmp_path / "target"
    stopped = child(source, target, "hf-to-megatron", 3, sent=signal.SIGINT)
    assert stopped.returncode == 130
    assert stopped.stderr == f"Interrupted. The same command goes on with what is in {tmp_path}/.target.partial.\n"
    again = child(source, target, "hf-to-megatron", 0)
    assert again.returncode == 0 and "continued where it was" in again.stdout
    assert main(["convert", "verify", str(source), str(target)]) == 0
