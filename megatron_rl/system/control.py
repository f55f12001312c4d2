"""How rank 0 has other processes take part in swaps: the workers inside the engines, and the trainer's ranks.

A process calls in with a session's name and its rank; from then on it does what rank 0 asks for, one thing at a time,
until rank 0 hangs up. Connections are authenticated with the run's key. Imports no torch.

Rank 0 may have thousands of such processes. Its event loop asks them all at the same time (``ask_all``), without a
thread for each.
"""

import asyncio
import atexit
import contextlib
import logging
import os
import secrets
import socket
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, Listener, answer_challenge, deliver_challenge
from queue import SimpleQueue
from typing import Any

from megatron_rl.errors import InputError, SwapError
from megatron_rl.system.channel import dial, listen, notice_absence
from megatron_rl.system.exchange import Exchange, message

_HELLO_SECONDS = 30.0  # that a caller may be silent until it has proved itself and said who it is
_ADMITTING = 32  # callers at most, at a time


class WorkerError(RuntimeError):
    """A worker is gone, late, or could not do what it was asked for."""


def call_in(address: str, key: bytes, session: str, rank: int) -> Connection:
    """Call rank 0, as ``rank`` of a session. Raises OSError or AuthenticationError."""
    connection = dial(address, key)
    connection.send((session, rank))
    return connection


def answer_calls(
    connection: Connection,
    target: Any,
    methods: Sequence[str],
    seconds: float | None = None,
    failed: Callable[[], None] | None = None,
) -> None:
    """Do what rank 0 asks of ``target`` until it hangs up; after an error, ``failed`` before it is told.

    Raises TimeoutError after ``seconds`` of silence.
    """
    while True:
        try:
            if not connection.poll(seconds):
                raise TimeoutError(f"rank 0 asked for nothing in {seconds} s")
            method, arguments = connection.recv()
            kind, value = answer(target, methods, method, arguments)
            if kind == "error" and failed is not None:
                failed()
            connection.send((kind, value))
        except (EOFError, ConnectionError):
            return


def answer(target: Any, methods: Sequence[str], method: str, arguments: Sequence[Any]) -> tuple[str, Any]:
    """("result", what the method returns) or ("error", (the error's type, its message)), for its caller."""
    try:
        if method not in methods:
            raise AttributeError(f"a {type(target).__name__} has no method {method}")
        return "result", getattr(target, method)(*arguments)
    except Exception as error:
        logging.getLogger(__name__).exception("%s failed", method)
        return "error", (type(error).__name__, str(error))


class Worker:
    """A process that called in: number ``rank`` of ``group``, by which errors name it."""

    def __init__(self, group: str, rank: int, connection: Connection) -> None:
        self.name, self.connection = f"{group} {rank}", connection
        self._exchange: Exchange | None = None  # while an event loop waits for its answer

    def ask(self, method: str, *arguments: Any, seconds: float) -> Any:
        """Have the worker do something; its result.

        Raises SwapError for weights that are not the trained ones, InputError for a model whose loading is not
        understood, WorkerError for everything else.
        """
        try:
            self.connection.send((method, arguments))
            if not self.connection.poll(seconds):
                self.connection.close()  # a late answer must not be taken for the next one
                raise self._late(method, seconds)
            kind, value = self.connection.recv()
        except (EOFError, OSError) as error:
            raise self._ended(method) from error
        return self._result(method, kind, value)

    def begin(self, order: bytes) -> "asyncio.Future[Any]":
        """As ``ask``, in an event loop; when the answer has come, or time is over, ``end`` has the result.

        ``order`` is ``message((method, arguments))``. Raises WorkerError while the last answer is still to come.
        """
        if self._exchange is not None:  # whose answer would be taken for this one's
            raise WorkerError(f"{self.name} is asked for something while it still does something else")
        self._exchange = Exchange(self.connection, order)
        return self._exchange.answer

    def end(self, method: str, seconds: float) -> Any:
        """The result of what was begun; raises as ``ask`` does, which would have waited for so many seconds."""
        exchange, self._exchange = self._exchange, None
        assert exchange is not None
        try:
            if not exchange.answer.done():
                raise self._late(method, seconds)
            try:
                kind, value = exchange.answer.result()
            except (EOFError, OSError) as error:
                raise self._ended(method) from error
        except BaseException:
            exchange.leave()
            self.connection.close()  # a late answer must not be taken for the next one
            raise
        return self._result(method, kind, value)

    def release(self) -> None:
        """Let it go; weights that were not committed stay poisoned."""
        # Closing alone says nothing to the other side where a process that was forked meanwhile has the line, too.
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self.connection.fileno())) as line:
            line.shutdown(socket.SHUT_RDWR)
        if self._exchange is None:  # else whoever waits closes it
            with contextlib.suppress(OSError):
                self.connection.close()

    def _late(self, method: str, seconds: float) -> WorkerError:
        return WorkerError(f"{self.name} did not answer {method} in {seconds:.0f} s")

    def _ended(self, method: str) -> WorkerError:
        return WorkerError(f"{self.name} ended during {method}")

    def _result(self, method: str, kind: str, value: Any) -> Any:
        if kind == "result":
            return value
        name, said = value
        if name == SwapError.__name__:
            raise SwapError(f"{self.name}: {said}")
        if name == InputError.__name__:
            raise InputError(f"{self.name}: {said}")
        raise WorkerError(f"{self.name}, {method}: {name}: {said}")


async def ask_all(
    workers: Sequence[Worker], method: str, *arguments: Any, seconds: float, each: Sequence[Sequence[Any]] = ()
) -> list[Any]:
    """Ask every worker at the same time; the first error, as of ``Worker.ask``, after all have answered.

    ``each``: further arguments, of each worker its own.
    """
    if each:
        orders = [message((method, (*arguments, *own))) for own in each]
    else:
        orders = [message((method, arguments))] * len(workers)
    begun: list[Worker] = []
    answers: list[asyncio.Future[Any]] = []
    try:
        for worker, order in zip(workers, orders, strict=True):
            answers.append(worker.begin(order))
            begun.append(worker)
        if answers:
            await asyncio.wait(answers, timeout=seconds)
    finally:  # also of those that were asked before another could not be: none is left with an answer to come
        results = [_result(worker, method, seconds) for worker in begun]
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def _result(worker: Worker, method: str, seconds: float) -> Any:
    """What a worker was asked for, or its error."""
    try:
        return worker.end(method, seconds)
    except Exception as error:
        return error


class Control:
    """The place where processes call in: a Unix socket, or host:port where some are on other machines."""

    def __init__(self, address: str, key: bytes) -> None:
        self.address, self._key = address, key
        self._arrived: dict[str, dict[int, Connection]] = defaultdict(dict)
        self._twice: dict[str, int] = {}  # by session, a rank as which more than one process called
        self._changed = threading.Condition()
        self._tell: dict[str, Callable[[], object]] = {}  # by session, who waits for it in an event loop
        self._callers: SimpleQueue[Connection | None] = SimpleQueue()
        self._idle, self._admitting = threading.Semaphore(0), 0  # threads that wait for callers, and all that there are
        self._open: set[str] = set()
        self._listeners: list[Listener] = []
        # Before a folder that was made earlier goes: a listener removes its socket, also when nobody closes it.
        atexit.register(self.close)
        self.listen(address)

    def listen(self, address: str) -> None:
        """Let processes call in at another address too. Raises InputError for one that cannot be had."""
        try:
            listener = listen(address, backlog=1024)
        except OSError as error:
            raise InputError(
                f"Rank 0 cannot listen at {address} for the engines' workers: {error.strerror}."
            ) from error
        self._listeners.append(listener)
        threading.Thread(target=self._accept, args=(listener,), name="control", daemon=True).start()

    def session(self, name: str = "") -> str:
        """A new session, for workers to name; one that they know has its ``name`` given."""
        name = name or secrets.token_hex(8)
        with self._changed:
            self._open.add(name)
        return name

    def collect(self, session: str, group: str, ranks: Sequence[int], seconds: float) -> list[Worker]:
        """Wait for the processes of a session that call as ``ranks``; in their order. ``group`` names them.

        Raises WorkerError naming the ranks that did not call, or one that called twice. The session is over
        afterwards: nobody else is let in.
        """
        deadline = time.monotonic() + seconds
        with self._changed:
            while not self._complete(session, len(ranks)):
                if not self._changed.wait(deadline - time.monotonic()):
                    break
        return self._end(session, group, ranks, seconds)

    async def collected(self, session: str, group: str, ranks: Sequence[int], seconds: float) -> list[Worker]:
        """As ``collect``, in an event loop."""
        loop, changed = asyncio.get_running_loop(), asyncio.Event()
        with self._changed:
            self._tell[session] = lambda: loop.call_soon_threadsafe(changed.set)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    while not self._complete(session, len(ranks)):
                        await changed.wait()
                        changed.clear()
        except BaseException:
            for connection in self._over(session)[0].values():
                connection.close()
            raise
        finally:
            del self._tell[session]
        return self._end(session, group, ranks, seconds)

    def _complete(self, session: str, count: int) -> bool:
        """Whether nobody else can come, or need."""
        with self._changed:
            come = len(self._arrived[session]) >= count
            return come or session not in self._open or session in self._twice

    def _over(self, session: str) -> tuple[dict[int, Connection], int | None]:
        """Let nobody else in: who came, by rank, and as which rank more than one."""
        with self._changed:
            self._open.discard(session)
            return self._arrived.pop(session, {}), self._twice.pop(session, None)

    def _end(self, session: str, group: str, ranks: Sequence[int], seconds: float) -> list[Worker]:
        arrived, twice = self._over(session)
        missing = [rank for rank in ranks if rank not in arrived]
        if twice is None and not missing and len(arrived) == len(ranks):
            return [Worker(group, rank, arrived[rank]) for rank in ranks]
        for connection in arrived.values():
            connection.close()
        there = f"of {len(ranks)}"
        if twice is not None:
            raise WorkerError(f"two processes called rank 0 as {group} {twice} {there}: ranks must differ")
        raise WorkerError(f"{group} {missing} {there} did not call rank 0 in {seconds:.0f} s")

    def cancel(self, session: str) -> None:
        """Nobody will come any more: whoever waits for the session stops waiting."""
        with self._changed:
            self._open.discard(session)
            self._notify(session)

    def close(self) -> None:
        """Listen no more."""
        atexit.unregister(self.close)
        for listener in self._listeners:
            listener.close()
        for _ in range(self._admitting):
            self._callers.put(None)

    def _accept(self, listener: Listener) -> None:
        while True:
            try:
                connection = listener.accept()
            except OSError:
                return  # closed
            with self._changed:  # one that says nothing must not keep the others waiting
                if not self._idle.acquire(blocking=False) and self._admitting < _ADMITTING:
                    self._admitting += 1
                    threading.Thread(target=self._admit_all, name="admit", daemon=True).start()
            self._callers.put(connection)

    def _admit_all(self) -> None:
        while (connection := self._callers.get()) is not None:
            self._admit(connection)
            self._idle.release()

    def _admit(self, connection: Connection) -> None:
        hello: Sequence[Any] = ()
        with (
            contextlib.suppress(AuthenticationError, EOFError, OSError),  # not one of ours
            socket.socket(fileno=os.dup(connection.fileno())) as line,
        ):
            if line.family != socket.AF_UNIX:
                notice_absence(line)
            _patience(line, _HELLO_SECONDS)
            deliver_challenge(connection, self._key)
            answer_challenge(connection, self._key)
            hello = connection.recv()
            _patience(line, 0.0)
        with self._changed:
            if len(hello) == 2 and hello[0] in self._open:
                session, rank = hello
                if rank in self._arrived[session]:
                    self._twice[session] = rank
                    connection.close()
                else:
                    self._arrived[session][rank] = connection
                self._notify(session)
            else:
                connection.close()

    def _notify(self, session: str) -> None:
        self._changed.notify_all()
        if (tell := self._tell.get(session)) is not None:
            tell()


def _patience(line: socket.socket, seconds: float) -> None:
    """How long a blocking read or write of a socket may take before it raises BlockingIOError; 0: for ever."""
    limit = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
