"""Swaps through a folder, and every file that must stop one, by name and in time."""

import os
import resource
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megatron_rl.errors import InputError, SwapError
from megatron_rl.resharding.layout import ParallelSizes
from megatron_rl.resharding.layouts.megatron import megatron_layout
from megatron_rl.resharding.layouts.sglang import EngineSizes, sglang_layout
from megatron_rl.resharding.plan import Plan, make_plan
from megatron_rl.resharding.swap import Landing, merge_hashes
from megatron_rl.resharding.transports.files import HEADER, FilesDestination, FilesSource
from megatron_rl.resharding.transports.transport import owned_hashes
from tests.conftest import PATIENCE
from tests.resharding.reference import Tensors, hf_tensors, megatron_shards
from tests.resharding.sglang_reference import sglang_shards
from tests.resharding.transports.test_transport import CONFIG

SIZES, ENGINE = ParallelSizes(tensor=2), EngineSizes(tensor=2)
NORM = "model.norm.weight"


class Swap:
    """Two ranks that own float32 weights, and two that want them in another dtype."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
        torch.manual_seed(0)
        self.folder, self.dtype = folder, dtype
        self.hf = hf_tensors(CONFIG, tags=False)
        self.held = megatron_shards(self.hf, CONFIG, SIZES)
        layout = sglang_layout(CONFIG, ENGINE)
        self.plan = make_plan(megatron_layout(CONFIG, SIZES), layout)
        self.wanted = [{n: torch.full(s, -1, dtype=dtype) for n, s in r.locals.items()} for r in layout.ranks]

    def source(self, rank: int, run: str = "run", plan: Plan | None = None) -> FilesSource:
        return FilesSource(plan or self.plan, rank, self.held[rank], self.dtype, self.folder, run)

    def landing(self, rank: int = 0, plan: Plan | None = None, timeout: float = PATIENCE) -> Landing:
        parameters, plan = self.wanted[rank], plan or self.plan
        end = FilesDestination(plan, rank, parameters, self.folder, "run", timeout)
        return Landing(plan, rank, parameters, end)

    def push(self, version: int, **settings: str) -> list[FilesSource]:
        sources = [self.source(rank, **settings) for rank in range(2)]
        for source in sources:
            source.push(version)
        return sources

    def path(self, version: int, source: int, destination: int = 0) -> Path:
        return self.folder / f"{version}.from{source}.to{destination}.swap"

    def expected(self, rank: int) -> Tensors:
        return sglang_shards({n: t.to(self.dtype) for n, t in self.hf.items()}, CONFIG, ENGINE)[rank]

    def refused(self, message: str, version: int = 1, rank: int = 0, timeout: float = PATIENCE) -> None:
        """A pull fails by this message and leaves the rank poisoned."""
        landing = self.landing(rank, timeout=timeout)
        with pytest.raises(SwapError, match=message):
            landing.pull(version)
        assert self.wanted[rank][NORM].isnan().all()
        with pytest.raises(SwapError, match="holds version -1"):
            landing.commit(version)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_destination_waits_for_its_copies_and_old_versions_go(tmp_path: Path, dtype: torch.dtype) -> None:
    swap = Swap(tmp_path / "new", dtype)
    sources = [swap.source(rank) for rank in range(2)]
    landings = [swap.landing(rank) for rank in range(2)]
    for version in (1, 2):
        waiting = [threading.Thread(target=landing.pull, args=(version,)) for landing in landings]
        for thread in waiting:
            thread.start()
        owned = [source.push(version) for source in sources]
        for thread in waiting:
            thread.join()
        for rank, (landing, (indices, hashes)) in enumerate(zip(landings, owned, strict=True)):
            at_rest = owned_hashes(swap.plan, rank, swap.held[rank], dtype)
            assert dict(zip(*at_rest, strict=True)) == dict(zip(indices, hashes, strict=True))
            landing.verify(version, merge_hashes(swap.plan, owned))
            landing.commit(version)
            assert swap.wanted[rank].keys() == swap.expected(rank).keys()
            for name, tensor in swap.expected(rank).items():
                assert torch.equal(swap.wanted[rank][name], tensor), name
        assert {path.name.split(".")[0] for path in swap.folder.iterdir()} == {str(version)}
        swap.hf = {name: tensor + 1 for name, tensor in swap.hf.items()}
        for mine, new in zip(swap.held, megatron_shards(swap.hf, CONFIG, SIZES), strict=True):
            for name, tensor in mine.items():
                tensor.copy_(new[name])
    for source in sources:
        source.close()
    assert list(swap.folder.iterdir()) == []


def test_damaged_files_are_named(tmp_path: Path) -> None:
    """One byte, exchanged rows, and ends that are missing: of the file, of a tensor's bytes, of the header."""
    swap = Swap(tmp_path)
    swap.push(1)
    path, whole = swap.path(1, 1), swap.path(1, 1).read_bytes()

    def write(content: bytes) -> None:
        path.write_bytes(content)

    write(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
    last = swap.plan.copies[[i for i in swap.plan.copies_from(1) if i in swap.plan.copies_to(0)][-1]]
    swap.refused(rf"Tensor {last.tensor}.*not arrive in version 1.*trainer rank 1 .*1 of \d+ copies.*{path.name}")
    end = len(whole) - last.elements * 2
    row = last.shape[-1] * 2
    write(whole[:end] + whole[end + row : end + 2 * row] + whole[end : end + row] + whole[end + 2 * row :])
    swap.refused(rf"Tensor {last.tensor}.*did not arrive in version 1")
    write(whole[:-5])
    swap.refused(rf"{path.name} has {len(whole) - 5} bytes instead of {len(whole)}: it lacks tensor {last.tensor}")
    write(whole[: HEADER.size + 20])
    swap.refused(f"{path.name} has a damaged header")
    write(whole[: HEADER.size + 3] + bytes([whole[HEADER.size + 3] ^ 1]) + whole[HEADER.size + 4 :])
    swap.refused(f"{path.name} has a damaged header")
    write(b"PK" + whole[2:])
    swap.refused(f"{path.name} is no file of a weight swap")
    write(b"")
    swap.refused(f"{path.name} is no file of a weight swap")
    write(whole)
    swap.landing().pull(1)


def test_files_of_another_swap_are_refused(tmp_path: Path) -> None:
    swap = Swap(tmp_path)
    swap.push(1)
    swap.path(1, 0).rename(swap.path(2, 0))
    swap.refused(r"2\.from0\.to0\.swap holds version 1, not version 2", 2)
    swap.path(2, 0).write_bytes(swap.path(1, 0, 1).read_bytes())
    swap.refused(r"2\.from0\.to0\.swap holds version 1", 2)
    swap.path(1, 0).write_bytes(swap.path(1, 0, 1).read_bytes())
    swap.refused(r"1\.from0\.to0\.swap has a damaged header, or one for other ranks or dtypes")
    other = replace(swap.plan, copies=(swap.plan.copies[1], swap.plan.copies[0], *swap.plan.copies[2:]))
    swap.source(0, plan=other).push(1)
    swap.refused(rf"1\.from0\.to0\.swap follows plan {other.hash}, this process plan {swap.plan.hash}")
    swap.dtype = torch.float16
    swap.push(1)
    swap.refused(r"1\.from0\.to0\.swap has a damaged header, or one for other ranks or dtypes")
    swap.dtype = torch.bfloat16
    swap.push(1, run="another")
    swap.refused(
        r"1\.from0\.to0\.swap is of another run at the deadline of 1 s: trainer rank 0 did not bring", timeout=1
    )


def test_a_wait_ends_at_the_deadline(tmp_path: Path) -> None:
    swap = Swap(tmp_path)
    swap.source(1).push(1)
    started = time.monotonic()
    late = r"1\.from0\.to0\.swap is not there at the deadline of 1 s: trainer rank 0 did not bring version 1, "
    swap.refused(late, timeout=1)
    assert time.monotonic() - started >= 1
    swap.path(1, 0).mkdir()
    swap.refused(r"1\.from0\.to0\.swap cannot be read: Is a directory")


def in_child(work: FilesSource, limit: int, fatal: bool) -> int:
    """Exit status of a process that may write so many bytes to a file, and is killed there or told so."""
    pid = os.fork()
    if pid == 0:
        code = 3
        try:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL if fatal else signal.SIG_IGN)
            work.push(1)
        except SwapError as error:
            print(error, flush=True)
            code = 4
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1]


def test_a_source_that_stops_half_way_leaves_no_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    swap = Swap(tmp_path)
    swap.source(0).push(1)
    limit = swap.path(1, 0).stat().st_size * 3 // 4  # more than rank 1 has for rank 0, less than for itself
    source = swap.source(1)
    assert os.WTERMSIG(in_child(source, limit, fatal=True)) == signal.SIGXFSZ
    assert (tmp_path / ".1.from1.to1.swap").stat().st_size == limit
    swap.refused(r"1\.from1\.to1\.swap is not there", rank=1, timeout=20)
    assert os.waitstatus_to_exitcode(in_child(source, limit, fatal=False)) == 4
    told = capfd.readouterr().out
    assert "1.from1.to1.swap of version 1 cannot be written at tensor model." in told and "too large" in told
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"1.from{way}.swap" for way in ("0.to0", "0.to1", "1.to0")]
    owned = [source.push(1), swap.source(0).push(1)]  # a source that lives heals
    landing = swap.landing(1)
    landing.pull(1)
    landing.verify(1, merge_hashes(swap.plan, owned))
    landing.commit(1)
    assert not any(t.isnan().any() for t in swap.wanted[1].values())


def test_what_is_hashed_is_read_from_the_destination(tmp_path: Path) -> None:
    """By a plan whose matrices' rows lie over each other there, what is written first does not stay."""
    swap = Swap(tmp_path)
    copies = [c._replace(destination_strides=(c.shape[1] - 1, 1)) if len(c.shape) == 2 else c for c in swap.plan.copies]
    over = replace(swap.plan, copies=tuple(copies))
    for rank in range(2):
        swap.source(rank, plan=over).push(1)
    landing = swap.landing(plan=over)
    with pytest.raises(SwapError, match="did not arrive in version 1"):
        landing.pull(1)
    assert swap.wanted[0][NORM].isnan().all()


def test_there_must_be_room(tmp_path: Path) -> None:
    swap = Swap(tmp_path)
    source = swap.source(0)
    for parcel in source._parcels:
        parcel.size = 1 << 60
    with pytest.raises(InputError, match=r"MB free; version 1 of trainer rank 0's weights needs \d+ MB\. Free some"):
        source.push(1)
