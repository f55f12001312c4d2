"""How rank 0 has other processes take part in swaps: the workers inside the engines, and the trainer's ranks.

A process calls in with a session's name and its rank; from then on it does what rank 0 asks for, one thing at a time,
until rank 0 hangs up. Connections are authenticated with the run's key. Imports no torch.
"""

import atexit
import contextlib
import logging
import os
import secrets
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, Listener, answer_challenge, deliver_challenge
from typing import Any

from megatron_rl.errors import InputError, SwapError
from megatron_rl.system.channel import dial, listen, notice_absence

_HELLO_SECONDS = 10.0  # in which a caller must have proved itself and said who it is


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

    def ask(self, method: str, *arguments: Any, seconds: float) -> Any:
        """Have the worker do something; its result.

        Raises SwapError for weights that are not the trained ones, InputError for a model whose loading is not
        understood, WorkerError for everything else.
        """
        try:
            self.connection.send((method, arguments))
            if not self.connection.poll(seconds):
                self.connection.close()  # a late answer must not be taken for the next one
                raise WorkerError(f"{self.name} did not answer {method} in {seconds:.0f} s")
            kind, value = self.connection.recv()
        except (EOFError, OSError) as error:
            raise WorkerError(f"{self.name} ended during {method}") from error
        if kind == "result":
            return value
        name, message = value
        if name == SwapError.__name__:
            raise SwapError(f"{self.name}: {message}")
        if name == InputError.__name__:
            raise InputError(f"{self.name}: {message}")
        raise WorkerError(f"{self.name}, {method}: {name}: {message}")

    def release(self) -> None:
        """Let it go; weights that were not committed stay poisoned."""
        with contextlib.suppress(OSError):
            self.connection.close()


class Control:
    """The place where processes call in: a Unix socket, or host:port where some are on other machines."""

    def __init__(self, address: str, key: bytes) -> None:
        self.address, self._key = address, key
        self._arrived: dict[str, dict[int, Connection]] = defaultdict(dict)
        self._twice: dict[str, int] = {}  # by session, a rank as which more than one process called
        self._changed = threading.Condition()
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

    def collect(self, session: str, group: str, count: int, seconds: float) -> list[Worker]:
        """Wait for ``count`` processes of a session; in the order of their ranks. ``group`` names them.

        Raises WorkerError naming the ranks that did not call, or one that called twice. The session is over
        afterwards: nobody else is let in.
        """
        deadline = time.monotonic() + seconds
        with self._changed:
            while len(self._arrived[session]) < count and session in self._open and session not in self._twice:
                if not self._changed.wait(deadline - time.monotonic()):
                    break
            self._open.discard(session)
            arrived, twice = self._arrived.pop(session, {}), self._twice.pop(session, None)
        workers = [Worker(group, rank, arrived[rank]) for rank in sorted(arrived)]
        if twice is not None or sorted(arrived) != list(range(count)):
            for worker in workers:
                worker.release()
            if twice is not None:
                raise WorkerError(f"two processes called rank 0 as {group} {twice} of {count}: ranks must differ")
            missing = sorted(set(range(count)) - set(arrived))
            raise WorkerError(f"{group} {missing} of {count} did not call rank 0 in {seconds:.0f} s")
        return workers

    def cancel(self, session: str) -> None:
        """Nobody will come any more: whoever waits for the session stops waiting."""
        with self._changed:
            self._open.discard(session)
            self._changed.notify_all()

    def close(self) -> None:
        """Listen no more."""
        atexit.unregister(self.close)
        for listener in self._listeners:
            listener.close()

    def _accept(self, listener: Listener) -> None:
        while True:
            try:
                connection = listener.accept()
            except OSError:
                return  # closed
            # In a thread: one that says nothing must not keep the others waiting.
            threading.Thread(target=self._admit, args=(connection,), name="admit", daemon=True).start()

    def _admit(self, connection: Connection) -> None:
        hello: Sequence[Any] = ()
        limit = threading.Timer(_HELLO_SECONDS, _hang_up, (connection,))
        limit.daemon = True
        limit.start()
        with contextlib.suppress(AuthenticationError, EOFError, OSError):  # not one of ours
            deliver_challenge(connection, self._key)
            answer_challenge(connection, self._key)
            hello = connection.recv()
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as line:
            if line.family != socket.AF_UNIX:
                notice_absence(line)
        limit.cancel()
        limit.join()  # nothing is to happen to the connection, or to one that takes its number, any more
        with self._changed:
            if len(hello) == 2 and hello[0] in self._open:
                session, rank = hello
                if rank in self._arrived[session]:
                    self._twice[session] = rank
                    connection.close()
                else:
                    self._arrived[session][rank] = connection
                self._changed.notify_all()
            else:
                connection.close()


def _hang_up(connection: Connection) -> None:
    """Wake whoever waits for a connection's next bytes, which closing it does not."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as end:
        end.shutdown(socket.SHUT_RDWR)
