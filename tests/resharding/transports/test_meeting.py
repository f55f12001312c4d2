"""Swaps over groups that are made for them, between processes: trainer ranks that obey rank 0, and engine workers."""

import multiprocessing
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import torch.distributed as dist

from megatron_rl.errors import LinkError
from megatron_rl.resharding.layout import ParallelSizes
from megatron_rl.resharding.layouts.megatron import megatron_layout
from megatron_rl.resharding.layouts.sglang import sglang_layout
from megatron_rl.resharding.nearest import Nearness, readers
from megatron_rl.resharding.plan import make_plan
from megatron_rl.resharding.swap import Receiver, SwapSource, merge_hashes, owned_hashes
from megatron_rl.resharding.terms import Reach
from megatron_rl.resharding.transports.choose import offer
from megatron_rl.resharding.transports.meeting import BACKENDS, Meeting, MeetingPlace
from megatron_rl.swap.sender import Sender
from megatron_rl.system.channel import KEY
from megatron_rl.system.control import Control, Worker, WorkerError, answer_calls, call_in
from megatron_rl.system.tcp_store import listening_store
from tests.conftest import PATIENCE, free_port
from tests.resharding.reference import hf_tensors, megatron_shards
from tests.resharding.sglang_reference import sglang_shards
from tests.resharding.transports.test_transport import CONFIG, ENGINE

SECONDS = PATIENCE
SIZES = ParallelSizes(tensor=2, data=2)
LAYOUT = megatron_layout(CONFIG, SIZES)
HF = hf_tensors(CONFIG, tags=False)
HELD = megatron_shards(HF, CONFIG, SIZES)
WORKERS = len(sglang_layout(CONFIG, ENGINE).ranks)


class EngineWorker:
    """One worker of an engine, without the engine."""

    def __init__(self, rank: int) -> None:
        self.rank, self.layout = rank, sglang_layout(CONFIG, ENGINE)
        self.tensors = {n: torch.full(shape, -1.0) for n, shape in self.layout.ranks[rank].locals.items()}

    def attach(self, source: SwapSource) -> str:
        self.receiver = Receiver(self.layout, self.tensors, source, self.rank)
        self.receiver.poison()
        return self.receiver.plan_hash

    def connect(self, meeting: Meeting) -> None:
        self.receiver.connect(meeting)

    def pull(self, version: int, hashes: np.ndarray, fault: str) -> dict[str, torch.Tensor]:
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        self.receiver.pull(version)
        self.receiver.verify(version, hashes)
        self.receiver.commit(version)
        return self.tensors


def trainer_rank(address: str, session: str, rank: int) -> None:
    sender = Sender(LAYOUT, rank, HELD[rank], torch.float32)
    sender.start(address, session)
    time.sleep(SECONDS)


def engine_worker(address: str, session: str, rank: int) -> None:
    torch.set_num_threads(1)
    connection = call_in(address, bytes.fromhex(os.environ[KEY]), session, rank)
    answer_calls(connection, EngineWorker(rank), ("attach", "connect", "pull"))


@dataclass
class Cluster:
    """Processes of a trainer and an engine, and rank 0's side of them."""

    control: Control
    processes: list[Any]

    def start(self, target: Callable[..., None], count: int, group: str) -> list[Worker]:
        session = self.control.session()
        context = multiprocessing.get_context("fork")
        for rank in range(count):
            process = context.Process(target=target, args=(self.control.address, session, rank), daemon=True)
            process.start()
            self.processes.append(process)
        return self.control.collect(session, group, range(count), SECONDS)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv(KEY, secrets.token_hex(16))
    cluster = Cluster(Control(f"127.0.0.1:{free_port()}", bytes.fromhex(os.environ[KEY])), [])
    yield cluster
    for process in cluster.processes:
        process.kill()
        process.join()
    cluster.control.close()


@pytest.fixture
def ranks(cluster: Cluster) -> list[Worker]:
    return cluster.start(trainer_rank, len(HELD), "trainer rank")


def ask(workers: list[Worker], method: str, *arguments: Any, each: list[tuple[Any, ...]] | None = None) -> list[Any]:
    """What all of them answer, or raise, at the same time."""

    def one(worker: Worker, own: tuple[Any, ...]) -> Any:
        try:
            return worker.ask(method, *arguments, *own, seconds=SECONDS)
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(workers)) as threads:
        return list(threads.map(one, workers, each or [()] * len(workers)))


def number(worker: Worker) -> int:
    return int(worker.name.rpartition(" ")[2])


def both(first: Callable[[], list[Any]], second: Callable[[], list[Any]]) -> tuple[list[Any], list[Any]]:
    with ThreadPoolExecutor(2) as threads:
        one, other = threads.submit(first), threads.submit(second)
        return one.result(), other.result()


def connect(place: MeetingPlace, ranks: list[Worker], engine: list[Worker], seconds: float = SECONDS) -> set[Any]:
    source = SwapSource(CONFIG, SIZES, False, False, [offer(Reach("gloo"), held) for held in HELD])
    reading = tuple(number(rank) for rank in ranks)
    meeting = place.meeting("gloo", len(HELD), reading, WORKERS, seconds)
    planned = ask(ranks, "plan", sglang_layout(CONFIG, ENGINE), {}, reading)
    plans = [*ask(engine, "attach", source), *(plan for plan, _ in planned)]
    here, there = both(lambda: ask(engine, "connect", meeting), lambda: ask(ranks, "connect", meeting))
    assert here + there == [None] * (len(engine) + len(ranks))
    return {str(answer) for answer in plans}


def swap(ranks: list[Worker], engine: list[Worker], version: int, fault: str = "") -> tuple[list[Any], list[Any]]:
    plan = make_plan(LAYOUT, sglang_layout(CONFIG, ENGINE))
    hashes = merge_hashes(plan, [owned_hashes(plan, rank, held) for rank, held in enumerate(HELD)])
    faults = [(fault if rank == 1 else "",) for rank in range(WORKERS)]
    return both(lambda: ask(engine, "pull", version, hashes, each=faults), lambda: ask(ranks, "push", version))


def check(landed: list[Any]) -> None:
    expected = sglang_shards(HF, CONFIG, ENGINE)
    for tensors, wanted, shard in zip(landed, expected, sglang_layout(CONFIG, ENGINE).ranks, strict=True):
        for pad in shard.padding:  # the engine's rows behind the vocabulary
            wanted[pad.local].view(-1)[pad.offset : pad.offset + pad.size] = 0
        assert tensors.keys() == wanted.keys()
        assert [n for n, t in wanted.items() if not torch.equal(tensors[n], t)] == []


def test_ranks_send_whenever_they_are_asked(cluster: Cluster, ranks: list[Worker]) -> None:
    engine = cluster.start(engine_worker, WORKERS, "worker")
    plan = make_plan(LAYOUT, sglang_layout(CONFIG, ENGINE))
    assert connect(MeetingPlace("127.0.0.1"), ranks, engine) == {plan.hash}
    for version in (1, 2):
        landed, sent = swap(ranks, engine, version)
        check(landed)
        assert sent == [None] * len(ranks)


def test_the_readers_of_an_engine_alone_meet_its_workers(cluster: Cluster, ranks: list[Worker]) -> None:
    chosen = readers(LAYOUT, Nearness(number=1))
    assert chosen == (2, 3)
    engine, sending = cluster.start(engine_worker, WORKERS, "worker"), [ranks[rank] for rank in chosen]
    connect(MeetingPlace("127.0.0.1"), sending, engine)
    landed, sent = swap(sending, engine, 1)
    check(landed)
    assert sent == [None, None]
    (other,) = ask(ranks[:1], "push", 1)
    assert "the rank is not connected" in str(other)


def test_an_engine_that_was_killed_is_replaced(cluster: Cluster, ranks: list[Worker]) -> None:
    place, first = MeetingPlace("127.0.0.1"), cluster.start(engine_worker, WORKERS, "worker")
    connect(place, ranks, first)
    started = time.monotonic()
    landed, sent = swap(ranks, first, 1, fault="kill")
    assert time.monotonic() - started < SECONDS / 2  # nobody waits for a deadline
    assert isinstance(landed[1], WorkerError) and "worker 1 ended during pull" in str(landed[1])
    lost = [str(error) for error in (*landed, *sent) if isinstance(error, WorkerError)]
    assert any("LinkError: The swap failed: destination rank 1 (process 5) was lost" in error for error in lost)
    again = cluster.start(engine_worker, WORKERS, "worker")
    assert len(connect(place, ranks, again)) == 1
    landed, sent = swap(ranks, again, 2)
    check(landed)
    assert sent == [None] * len(ranks)


def test_whoever_does_not_come_is_missed(cluster: Cluster, ranks: list[Worker]) -> None:
    everybody = tuple(range(len(ranks)))
    meeting = MeetingPlace("127.0.0.1").meeting("gloo", len(ranks), everybody, WORKERS, 2.0)
    ask(ranks, "plan", sglang_layout(CONFIG, ENGINE), {}, everybody)
    answers = ask(ranks, "connect", meeting)
    assert all("found no way to the others" in str(answer) for answer in answers)
    assert all("the rank is not connected" in str(answer) for answer in ask(ranks, "push", 1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_rank_alone_gives_up_at_the_deadline(backend: str) -> None:
    place = MeetingPlace("127.0.0.1")
    with pytest.raises(LinkError, match=f"Process 0 of a swap over {backend} found no way to the others: .*time"):
        place.meeting(backend, 1, [0], 1, 0.5).join(0)


@pytest.mark.parametrize("before", [None, "0"])
def test_groups_over_nccl_raise_instead_of_ending_the_process(
    before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCH_NCCL_BLOCKING_WAIT", raising=False)
    if before is not None:
        monkeypatch.setenv("TORCH_NCCL_BLOCKING_WAIT", before)
    seen: list[str | None] = []

    class Group:
        class Options:
            _timeout = None

        def __init__(self, *arguments: Any) -> None:
            seen.append(os.environ.get("TORCH_NCCL_BLOCKING_WAIT"))

    monkeypatch.setattr(torch.distributed, "ProcessGroupNCCL", Group, raising=False)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    place = MeetingPlace("127.0.0.1")
    ends = place.meeting("nccl", 1, [0], 0, 5.0).join(0)
    assert isinstance(ends.group, Group) and seen == ["1"]
    assert os.environ.get("TORCH_NCCL_BLOCKING_WAIT") == before


def test_a_store_listens_at_its_address_only() -> None:
    store = listening_store("127.0.0.1")
    heard = {c.laddr.ip for c in psutil.Process().net_connections("tcp") if c.laddr.port == store.port}
    assert heard == {"127.0.0.1"}
    store.set("said", "heard")
    assert dist.TCPStore("127.0.0.1", store.port, is_master=False).get("said") == b"heard"
