"""Processes that call rank 0 and do what it asks for; here threads."""

import asyncio
import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing import AuthenticationError
from pathlib import Path
from typing import Any

import pytest

from megatron_rl.errors import InputError, LinkError, SwapError
from megatron_rl.system.control import Control, Worker, WorkerError, answer_calls, ask_all, call_in
from tests.conftest import PATIENCE, free_port

KEY = b"a run's key"
METHODS = ("double", "fail", "fail_for", "wait", "later", "release")
FREE = threading.Event()  # for those who wait
ASKED: list[Worker] = []  # let go when a test ends, so that their threads end too


class Target:
    """What is asked."""

    def double(self, number: int) -> int:
        return 2 * number

    def fail(self, kind: str) -> None:
        raise {"swap": SwapError, "link": LinkError, "input": InputError}.get(kind, ValueError)(f"{kind} went wrong")

    def fail_for(self, kind: str, _: int) -> None:
        if kind:
            self.fail(kind)

    def wait(self, wait: bool) -> None:
        if wait:
            FREE.wait(PATIENCE)

    def later(self, content: bytes) -> bytes:
        FREE.wait(PATIENCE)
        return content[::-1]

    def release(self) -> None:
        FREE.set()


@pytest.fixture
def control(tmp_path: Path) -> Iterator[Control]:
    control = Control(str(tmp_path / "c"), KEY)
    FREE.clear()
    yield control
    FREE.set()
    while ASKED:
        ASKED.pop().release()
    control.close()


def admitting() -> int:
    return sum(thread.name == "admit" for thread in threading.enumerate())


def call(address: str, session: str, rank: int, failed: list[str] | None = None) -> None:
    def obey() -> None:
        with contextlib.suppress(EOFError, OSError), call_in(address, KEY, session, rank) as connection:
            answer_calls(connection, Target(), METHODS, PATIENCE, lambda: (failed or []).append("x"))

    threading.Thread(target=obey, daemon=True).start()


def one(control: Control, failed: list[str] | None = None) -> Worker:
    session = control.session()
    call(control.address, session, 0, failed)
    ASKED.extend(control.collect(session, "worker", range(1), PATIENCE))
    return ASKED[-1]


def let_in(control: Control) -> Worker:
    """A worker that said who it is before it was hung up on, which takes a busy machine several attempts."""
    while True:
        session = control.session()
        call(control.address, session, 0)
        try:
            ASKED.extend(control.collect(session, "worker", range(1), 2.0))
        except WorkerError:
            continue
        return ASKED[-1]


def test_calls_at_two_addresses_in_the_order_of_ranks(control: Control) -> None:
    other = f"127.0.0.1:{free_port()}"
    control.listen(other)
    session = control.session()
    call(other, session, 1)
    call(control.address, session, 0)
    workers = control.collect(session, "worker", range(2), PATIENCE)
    ASKED.extend(workers)
    assert [worker.name for worker in workers] == ["worker 0", "worker 1"]
    assert [worker.ask("double", 21 + i, seconds=PATIENCE) for i, worker in enumerate(workers)] == [42, 44]


def test_errors_keep_their_meaning(control: Control) -> None:
    failed: list[str] = [""]
    worker = one(control, failed)
    with pytest.raises(SwapError, match="worker 0: swap went wrong"):
        worker.ask("fail", "swap", seconds=PATIENCE)
    with pytest.raises(InputError, match="worker 0: input went wrong"):
        worker.ask("fail", "input", seconds=PATIENCE)
    with pytest.raises(WorkerError, match="worker 0, fail: LinkError: link went wrong"):  # weights are not to blame
        worker.ask("fail", "link", seconds=PATIENCE)
    with pytest.raises(WorkerError, match="a Target has no method hide"):
        worker.ask("hide", seconds=PATIENCE)
    assert failed == ["", "x", "x", "x", "x"]
    assert worker.ask("double", 4, seconds=PATIENCE) == 8


def test_a_late_answer_is_not_taken_for_the_next(control: Control) -> None:
    worker = one(control)
    with pytest.raises(WorkerError, match="worker 0 did not answer wait in 0 s"):
        worker.ask("wait", True, seconds=0.1)
    FREE.set()
    with pytest.raises(WorkerError, match="worker 0 ended during double"):
        worker.ask("double", 4, seconds=PATIENCE)


def test_strangers_and_the_silent_keep_nobody_waiting(control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron_rl.system.control._HELLO_SECONDS", PATIENCE)
    address = free_port()
    control.listen(f"127.0.0.1:{address}")
    with socket.create_connection(("127.0.0.1", address)):  # says nothing
        with pytest.raises(AuthenticationError):
            call_in(control.address, b"another key", "session", 0)
        assert one(control).ask("double", 4, seconds=PATIENCE) == 8


def test_the_silent_and_the_slow_are_hung_up_on(control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron_rl.system.control._HELLO_SECONDS", 0.3)
    monkeypatch.setattr("megatron_rl.system.control._ADMITTING", 2)
    before, port = admitting(), free_port()
    control.listen(f"127.0.0.1:{port}")
    with (
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as silent,
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as slow,
    ):
        slow.sendall(b"\0\0")  # of a message's length
        for caller in (silent, slow):
            # the challenge, then the end; it is a reset where what was sent came too late to be read
            with contextlib.suppress(ConnectionResetError):
                while caller.recv(4096):
                    pass
    worker = let_in(control)
    time.sleep(0.6)  # who has been let in is not hung up on
    assert worker.ask("double", 4, seconds=PATIENCE) == 8
    assert admitting() <= before + 2
    control.close()
    deadline = time.monotonic() + PATIENCE
    while admitting() > before:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_more_silent_strangers_than_can_be_heard_at_a_time(control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron_rl.system.control._HELLO_SECONDS", 0.3)
    monkeypatch.setattr("megatron_rl.system.control._ADMITTING", 2)
    port = free_port()
    control.listen(f"127.0.0.1:{port}")
    with contextlib.ExitStack() as open_lines:
        for _ in range(5):
            open_lines.enter_context(socket.create_connection(("127.0.0.1", port)))
        assert let_in(control).ask("double", 4, seconds=PATIENCE) == 8


def many(control: Control, count: int) -> list[Worker]:
    session = control.session()
    for rank in range(count):
        call(control.address, session, rank)
    workers = asyncio.run(control.collected(session, "worker", range(count), PATIENCE))
    ASKED.extend(workers)
    return workers


def test_an_event_loop_asks_many_without_a_thread_for_each(control: Control) -> None:
    workers = many(control, 12)
    assert [worker.name for worker in workers] == [f"worker {rank}" for rank in range(12)]
    obeying = set(threading.enumerate())
    more = []

    async def ask() -> list[Any]:
        first = await ask_all(workers, "double", 4, seconds=PATIENCE)
        own = await ask_all(workers, "double", seconds=PATIENCE, each=[(rank,) for rank in range(12)])
        more.extend(set(threading.enumerate()) - obeying)
        return first + own

    assert asyncio.run(ask()) == [8] * 12 + [2 * rank for rank in range(12)]
    assert more == []
    assert workers[3].ask("double", 5, seconds=PATIENCE) == 10  # as before


def test_large_messages_to_a_slow_reader(control: Control) -> None:
    """More than a socket holds, both ways; meanwhile others are asked."""
    slow, other = many(control, 2)
    content = bytes(range(256)) * 20_000

    async def ask() -> tuple[Any, Any]:
        sleeping = asyncio.ensure_future(ask_all([slow], "later", content, seconds=PATIENCE))
        (quick,) = await ask_all([other], "double", 1, seconds=PATIENCE)
        assert not sleeping.done()
        await ask_all([other], "release", seconds=PATIENCE)
        return quick, (await sleeping)[0]

    assert asyncio.run(ask()) == (2, content[::-1])


def test_what_goes_wrong_in_an_event_loop(control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    workers = many(control, 3)

    def asked(method: str, seconds: float = PATIENCE, each: Any = ()) -> Any:
        return asyncio.run(ask_all(workers, method, seconds=seconds, each=each))

    with pytest.raises(SwapError, match="worker 1: swap went wrong"):
        asked("fail_for", each=[("", 0), ("swap", 0), ("link", 0)])
    with pytest.raises(InputError, match="worker 0: input went wrong"):
        asked("fail_for", each=[("input", 0), ("", 0), ("", 0)])
    with pytest.raises(WorkerError, match="worker 2, fail_for: LinkError: link went wrong"):
        asked("fail_for", each=[("", 0), ("", 0), ("link", 0)])

    async def others_have_answered(answers: list[Any], timeout: float) -> None:
        assert timeout == 0.3
        await asyncio.gather(answers[0], answers[2])

    with monkeypatch.context() as patch, pytest.raises(WorkerError, match="worker 1 did not answer wait in 0 s"):
        patch.setattr("megatron_rl.system.control.asyncio.wait", others_have_answered)
        asked("wait", 0.3, each=[(False,), (True,), (False,)])
    with pytest.raises(WorkerError, match="worker 1 ended during double"):
        asked("double", each=[(1,), (1,), (1,)])
    assert workers[0].ask("double", 4, seconds=PATIENCE) == 8
    with pytest.raises(WorkerError, match="worker 2 did not answer wait in 0 s"):
        asyncio.run(ask_all(workers[2:], "wait", True, seconds=0.1))


def test_an_event_loop_that_gives_up_leaves_no_answer_behind(control: Control) -> None:
    (worker,) = many(control, 1)

    async def give_up() -> None:
        asking = asyncio.ensure_future(ask_all([worker], "wait", True, seconds=PATIENCE))
        while worker._exchange is None:
            await asyncio.sleep(0)
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asking

    asyncio.run(give_up())
    with pytest.raises(WorkerError, match="worker 0 ended during double"):
        worker.ask("double", 4, seconds=PATIENCE)


def test_a_worker_that_is_let_go_meanwhile(control: Control) -> None:
    (worker,) = many(control, 1)

    async def let_go() -> None:
        asking = asyncio.ensure_future(ask_all([worker], "wait", True, seconds=PATIENCE))
        while worker._exchange is None:
            await asyncio.sleep(0)
        worker.release()
        await asking

    with pytest.raises(WorkerError, match="worker 0 ended during wait"):
        asyncio.run(let_go())
    assert worker.connection.closed


def one_of_three(control: Control) -> str:
    """A session in which rank 1 alone has called."""
    session = control.session()
    call(control.address, session, 1)
    deadline = time.monotonic() + PATIENCE
    while not control._arrived[session]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return session


def test_who_is_missing_is_named_in_an_event_loop(control: Control) -> None:
    session = one_of_three(control)
    with pytest.raises(WorkerError, match=r"worker \[0, 2\] of 3 did not call rank 0 in 0 s"):
        asyncio.run(control.collected(session, "worker", range(3), 0.1))
    session = control.session()

    async def nobody() -> None:
        asyncio.get_running_loop().call_later(0.05, control.cancel, session)
        await control.collected(session, "worker", range(1), PATIENCE)

    with pytest.raises(WorkerError, match=r"worker \[0\] of 1 did not call"):
        asyncio.run(nobody())


def test_two_processes_of_one_rank_are_refused(control: Control) -> None:
    session = control.session()
    for rank in (1, 1):
        call(control.address, session, rank)
    with pytest.raises(WorkerError, match="two processes called rank 0 as worker 1 of 2: ranks must differ"):
        control.collect(session, "worker", range(2), PATIENCE)


def test_who_is_missing_is_named(control: Control) -> None:
    session = one_of_three(control)
    with pytest.raises(WorkerError, match=r"worker \[0, 2\] of 3 did not call rank 0 in 0 s"):
        control.collect(session, "worker", range(3), 0.1)


def test_an_exit_that_closes_nothing_is_quiet() -> None:
    code = (
        "import tempfile\nfrom megatron_rl.system.control import Control\n"
        "folder = tempfile.TemporaryDirectory()\ncontrol = Control(folder.name + '/control', b'key')\n"
        "raise SystemExit(2)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (2, "")


def test_one_that_cannot_be_asked_leaves_no_other_with_an_answer_to_come(control: Control) -> None:
    """Not even the first: it is hung up on, so that what it still answers is not taken for something else."""
    first, busy, last = many(control, 3)

    async def ask() -> None:
        waiting = asyncio.ensure_future(ask_all([busy], "wait", True, seconds=PATIENCE))
        while busy._exchange is None:
            await asyncio.sleep(0)
        with pytest.raises(WorkerError, match="worker 1 is asked for something while it still does something else"):
            await ask_all([first, busy, last], "double", 1, seconds=PATIENCE)
        FREE.set()
        await waiting

    asyncio.run(ask())
    with pytest.raises(WorkerError, match="worker 0 ended during double"):
        first.ask("double", 4, seconds=PATIENCE)
    assert [worker.ask("double", 4, seconds=PATIENCE) for worker in (busy, last)] == [8, 8]
