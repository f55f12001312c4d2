"""Records of an evaluation that was broken off, and of another one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_rl.errors import InputError
from megatron_rl.evaluation.records import Records, read_records, reserved

IDENTITY = {"suite": "x", "weights": "w", "sampling": {"samples": 2}}


def rows(first: int, count: int) -> list[dict]:
    return [{"item": str(i), "completion": "é\n\u2028\x00<b>"} for i in range(first, first + count)]


def test_it_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.jsonl"
    with Records(path, IDENTITY, 2) as records:
        records.append(rows(0, 4))
        created = records.created
    with Records(path, IDENTITY, 2) as again:
        assert again.rows == rows(0, 4) and again.created == created
        again.append(rows(4, 2))
    assert read_records(path) == (IDENTITY, rows(0, 6))


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_line_cut_short_and_a_prompt_without_all_its_samples_are_done_again(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "x.jsonl"
    with Records(path, IDENTITY, 2) as records:
        records.append(rows(0, 4))
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    with Records(path, IDENTITY, 2) as again:
        assert again.rows == rows(0, 2)
        again.append(rows(2, 2))
    assert path.read_bytes() == whole


def test_another_evaluation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    Records(path, IDENTITY | {"weights": "u"}, 2).close()  # one without answers is none
    with Records(path, IDENTITY, 2) as records:
        records.append(rows(0, 2))
    with pytest.raises(InputError, match=r"weights was 'w' and is 'v'\): name another place with --out"):
        Records(path, IDENTITY | {"weights": "v"}, 2)
    path.write_text('{"a": 1}\n')
    with pytest.raises(InputError, match="holds no evaluation"):
        Records(path, IDENTITY, 2)
    with pytest.raises(InputError, match="holds no records of an evaluation"):
        read_records(tmp_path / "none.jsonl")


def test_an_empty_or_broken_file_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    for content in (b"", b'{"identity": {"su'):
        path.write_bytes(content)
        with Records(path, IDENTITY, 2) as records:
            assert records.rows == []
        assert read_records(path) == (IDENTITY, [])


def test_completions_that_two_processes_wrote_count_once(tmp_path: Path) -> None:
    """Of each the first is kept, in the file, too; what they had not come to is asked."""
    path = tmp_path / "x.jsonl"
    made = [{"item": str(i), "form": form, "sample": n} for i in range(5) for form in (0, 1) for n in (0, 1)]
    ours, theirs = ([row | {"by": who} for row in made] for who in ("us", "them"))
    with Records(path, IDENTITY, 2) as records:
        records.append([*ours[:4], *theirs[:8], *ours[4:12], *theirs[8:13]])
    kept = [*ours[:4], *theirs[4:8], *ours[8:12]]
    assert read_records(path) == (IDENTITY, [*kept, theirs[12]])
    with Records(path, IDENTITY, 2) as again:
        assert (
            again.rows == kept and again.created == records.created
        )  # a prompt with one of two samples is asked again
        again.append(ours[12:])
    assert [json.loads(line) for line in path.read_text().splitlines()[1:]] == [*kept, *ours[12:]]


HOLD = """
import sys
from pathlib import Path
from megatron_rl.evaluation.records import reserved
with reserved(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_is_one_process_s(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    command = [sys.executable, "-c", HOLD, str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=f"Another process is evaluating in {out}: .* another place with --out"):
            reserved(out).__enter__()
        other.communicate()
    for _ in range(2):
        with reserved(out):
            pass
