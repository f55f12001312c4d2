"""Parts of the conversion: archives, pickles, threads, pages."""

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_rl.resharding.convert.parts import Part, Queue
from megatron_rl.resharding.folders.safetensors import page_shift
from megatron_rl.resharding.folders.torch_dist.archive import find_tensor, object_archive, tensor_archive
from megatron_rl.resharding.folders.torch_dist.pickles import read_pickle
from tests.resharding.folders.test_hf import CONFIG, write_folder
from tests.resharding.reference import hf_tensors


@pytest.mark.parametrize("count", [6, (1 << 32) + 8])
def test_archives(count: int, tmp_path: Path) -> None:
    """Beyond 4 GiB too (a file of holes): Python's zipfile finds the same data as we do."""
    before, after = tensor_archive("BF16", (count // 2, 2), 100, 40)
    with (tmp_path / "a").open("wb") as out:
        out.seek(100)
        out.write(before)
        out.seek(100 + len(before) + 2 * count)
        out.write(after)
        size = out.tell()
    handle = (tmp_path / "a").open("rb")
    assert find_tensor(handle.fileno(), 100, size - 100) == ("BF16", (count // 2, 2), 100 + len(before))
    assert (100 + len(before)) % 4096 == 40
    with zipfile.ZipFile(tmp_path / "a") as archive:
        info = archive.getinfo("archive/data/0")
        assert (info.file_size, info.compress_type) == (2 * count, 0)
        assert archive.read("archive/version") == b"3\n"
    (tmp_path / "b").write_bytes(object_archive([None, {"a": (1, -5, 1 << 40, True, 2.5)}]))
    assert torch.load(tmp_path / "b") == [None, {"a": (1, -5, 1 << 40, True, 2.5)}]


def test_pickles_run_nothing() -> None:
    import os
    import pickle

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, ("echo evil",)

    with pytest.raises(ValueError, match=r"names posix\.system, which no checkpoint"):
        read_pickle(pickle.dumps(Evil()))


def test_converting_imports_no_torch(tmp_path: Path) -> None:
    write_folder(tmp_path / "hf", {n: t.contiguous() for n, t in hf_tensors(CONFIG, tags=False).items()}, CONFIG)
    code = (
        "import sys; from megatron_rl.cli import main\n"
        f"assert main(['convert', 'hf-to-megatron', r'{tmp_path}/hf', r'{tmp_path}/m']) == 0\n"
        f"assert main(['convert', 'megatron-to-hf', r'{tmp_path}/m', r'{tmp_path}/b']) == 0\n"
        f"assert main(['convert', 'verify', r'{tmp_path}/hf', r'{tmp_path}/b']) == 0\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_threads_take_parts_of_files_that_nobody_writes() -> None:
    parts = [Part(files=set(files)) for files in ("a", "a", "ab", "c", "b")]
    queue = Queue(enumerate(parts))
    assert [queue.take() for _ in range(2)] == [(0, parts[0]), (3, parts[3])]
    assert queue.take() == (4, parts[4])
    queue.done(parts[0])
    assert queue.take() == (1, parts[1])
    assert queue.take() == (2, parts[2])  # its files are busy, but it is what is left
    assert queue.take() is None


def test_an_error_ends_the_queue_for_all() -> None:
    queue = Queue(enumerate([Part(), Part()]))
    with pytest.raises(OSError), queue:
        assert queue.take() is not None
        raise OSError
    assert queue.take() is None


def test_page_shift_keeps_most_bytes_where_they_were_in_their_pages() -> None:
    sizes = {"a": 8192, "b": 24, "c": 4096, "d": 8192}
    sources = {"a": 4096 + 8, "b": 0, "c": 8192 + 32, "d": 12288 + 32}
    assert page_shift("abcd", sizes, sources) == (8, 20480)  # a at 8; c and d lie 24 bytes behind it in both
    assert page_shift("acdb", sizes, sources) == (32, 12288)  # without b between them, c and d at 32
    assert page_shift("acdb", sizes, {}) == (0, 0)
