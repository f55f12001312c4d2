"""How rank 0 speaks with the workers inside the engines while their weights are swapped.

A worker that SGLang sends into a swap (``worker.swap``) calls in here with the swap's session and its rank; from then
on it does what rank 0 asks for, one thing at a time, until rank 0 lets it go. Connections are authenticated with the
run's key. Imports no torch.
"""

import contextlib
import secrets
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, Listener
from typing import Any

from megatron_rl.errors import InputError
from megatron_rl.rollout.channel import parse_address
from megatron_rl.rollout.protocol import SwapError


class WorkerError(RuntimeError):
    """A worker is gone, late, or could not do what it was asked for."""


class Worker:
    """One worker that called in."""

    def __init__(self, engine: str, rank: int, connection: Connection) -> None:
        self.engine, self.rank, self._connection = engine, rank, connection

    def ask(self, method: str, *arguments: Any, seconds: float) -> Any:
        """Have the worker do something; its result.

        Raises SwapError for weights that are not the trained ones, InputError for a model whose loading is not
        understood, WorkerError for everything else.
        """
        try:
            self._connection.send((method, arguments))
            if not self._connection.poll(seconds):
                raise WorkerError(f"worker {self.rank} of {self.engine} did not answer {method} in {seconds:.0f} s")
            kind, value = self._connection.recv()
        except (EOFError, OSError) as error:
            raise WorkerError(f"worker {self.rank} of {self.engine} ended during {method}") from error
        if kind == "result":
            return value
        name, message = value
        if name == SwapError.__name__:
            raise SwapError(f"worker {self.rank} of {self.engine}: {message}")
        if name == InputError.__name__:
            raise InputError(f"SGLang ({self.engine}, worker {self.rank}): {message}")
        raise WorkerError(f"worker {self.rank} of {self.engine}, {method}: {name}: {message}")

    def release(self) -> None:
        """Let the worker go; weights that were not committed stay poisoned."""
        with contextlib.suppress(OSError):
            self._connection.close()


class Control:
    """The place where workers call in: a Unix socket, or host:port for workers on other hosts."""

    def __init__(self, address: str, key: bytes) -> None:
        try:
            self._listener = Listener(parse_address(address), authkey=key)
        except OSError as error:
            raise InputError(
                f"Rank 0 cannot listen at {address} for the engines' workers: {error.strerror}."
            ) from error
        self.address = address
        self._arrived: dict[str, dict[int, Connection]] = defaultdict(dict)
        self._changed = threading.Condition()
        self._open: set[str] = set()
        threading.Thread(target=self._accept, name="control", daemon=True).start()

    def session(self) -> str:
        """A new session, for workers to name."""
        name = secrets.token_hex(8)
        with self._changed:
            self._open.add(name)
        return name

    def collect(self, session: str, engine: str, count: int, seconds: float) -> list[Worker]:
        """Wait for ``count`` workers of a session; in the order of their ranks.

        Raises WorkerError naming the ranks that did not call. The session is over afterwards: nobody else is let in.
        """
        deadline = time.monotonic() + seconds
        with self._changed:
            while len(self._arrived[session]) < count and session in self._open:
                if not self._changed.wait(deadline - time.monotonic()):
                    break
            self._open.discard(session)
            arrived = self._arrived.pop(session, {})
        workers = [Worker(engine, rank, arrived[rank]) for rank in sorted(arrived)]
        if [w.rank for w in workers] != list(range(count)):
            for worker in workers:
                worker.release()
            missing = sorted(set(range(count)) - set(arrived))
            raise WorkerError(f"{engine}: workers {missing} of {count} did not begin the swap in {seconds:.0f} s")
        return workers

    def cancel(self, session: str) -> None:
        """Nobody will come any more: whoever waits for the session stops waiting."""
        with self._changed:
            self._open.discard(session)
            self._changed.notify_all()

    def close(self) -> None:
        """Listen no more."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection = self._listener.accept()
            except (AuthenticationError, EOFError, ConnectionError):
                continue  # not one of ours
            except OSError:
                return  # closed
            try:
                hello: Sequence[Any] = connection.recv() if connection.poll(10) else ()
            except (EOFError, OSError):
                hello = ()
            with self._changed:
                if len(hello) == 2 and hello[0] in self._open:
                    self._arrived[hello[0]][hello[1]] = connection
                    self._changed.notify_all()
                else:
                    connection.close()
