"""Who starts, watches and ends the SGLang servers of one machine of a run. Imports no torch.

On machines that are not rank 0's it is a process of its own:

    MEGATRON_RL_KEY=HEX python -m megatron_rl.rollout.sglang.servers.keeper CONTROL NUMBER ADDRESS

It calls rank 0 at CONTROL as keeper NUMBER, and does what it is asked until rank 0 hangs up; then its servers end. They
listen at this machine's ADDRESS.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing import AuthenticationError
from pathlib import Path
from typing import Any

from megatron_rl.rollout.config import Served
from megatron_rl.rollout.sglang.servers.gpus import engine_gpus, shared
from megatron_rl.rollout.sglang.servers.process import Part, ServerProcess, arguments, environment
from megatron_rl.system import machine, scratch, stop
from megatron_rl.system.channel import key_from_environment, written
from megatron_rl.system.control import Worker, WorkerError, answer_calls, call_in
from megatron_rl.system.processes import run

SESSION = "keepers"
START_SECONDS = 300.0  # in which all keepers must have called when rank 0 listens
_METHODS = ("place", "prepare", "free_address", "start", "kill", "ended", "last_words", "note_parts")
_ASK_SECONDS = 60.0
_LOOK = 0.5  # seconds between looks at the servers of a machine
_RETRY = 0.1


class Keeper:
    """The servers of this machine, by number: what rank 0 may ask for."""

    def __init__(self, address: str, key: bytes, folder: Path) -> None:
        self.address, self.key, self.folder = address, key, folder
        self.servers: list[ServerProcess] = []

    def ask(self, method: str, *arguments: Any) -> Any:
        """As ``FarKeeper.ask``, where rank 0 has it in its own process."""
        return getattr(self, method)(*arguments)

    def server(self, number: int) -> ServerProcess:
        """One that has been made."""
        return self.servers[number]

    def place(self) -> str:
        """``machine.place()`` of this process."""
        return machine.place()

    def prepare(
        self,
        served: Served,
        model: Path,
        logs: Path,
        indices: Sequence[int],
        ranks: int,
        port: int = 0,
        parts: Sequence[Part] = (),
    ) -> tuple[list[str], bool]:
        """Make the servers ``indices`` of the run, beside ``ranks`` trainer ranks of this machine.

        ``port``: of the first of them, the others follow; 0: free ones. ``parts``: which machine of each server this
        is, where each has several. Returns their URLs, and whether they compute on GPUs of these ranks.
        """
        gpus = engine_gpus(replace(served.rollout, engines=len(indices)), ranks)
        env = environment(served.rollout.threads, served.rollout.sglang.tensor_parallel, self.key)
        if parts:
            env["SGLANG_HOST_IP"] = self.address
        urls = []
        for place, index in enumerate(indices):
            at = port + place if port else machine.free_low_port(self.address)
            part, on = (parts[place] if parts else None), (gpus[place] if gpus else None)
            chosen = arguments(served, model, index, at, self.key, on, self.address, part)
            name = f"sglang{index}" + (f"-{part.number}" if part is not None and part.number else "")
            self.servers.append(ServerProcess(name, chosen, env, self.folder, logs / f"{name}.log"))
            urls.append(url(self.address, at))
        return urls, shared(gpus, ranks)

    def free_address(self) -> str:
        """An address of this machine at which nobody listens."""
        return written(self.address, machine.free_low_port(self.address))

    def start(self, server: int) -> int:
        """Start a server, once more if it has ended; its process id."""
        self.servers[server].start()
        return self.servers[server].pid

    def kill(self, server: int, gently: bool) -> None:
        """End a server."""
        self.servers[server].kill(gently)

    def ended(self) -> list[bool]:
        """Of each server."""
        return [server.ended for server in self.servers]

    def last_words(self, server: int) -> str:
        """Of a server."""
        return self.servers[server].last_words()

    def note_parts(self, server: int) -> None:
        """A server is ready."""
        self.servers[server].note_parts()


def url(host: str, port: int) -> str:
    """Of a server."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class FarKeeper:
    """Rank 0's side of a ``Keeper``."""

    def __init__(self, worker: Worker) -> None:
        self._worker, self._lock = worker, threading.Lock()
        self.lost = ""  # why it does not answer any more
        self._ended: list[bool] = []
        self.place: str = self.ask("place")

    def ask(self, method: str, *arguments: Any) -> Any:
        """Have it do something. Raises WorkerError; after one the machine counts as lost."""
        with self._lock:
            if self.lost:
                raise WorkerError(self.lost)
            try:
                return self._worker.ask(method, *arguments, seconds=_ASK_SECONDS)
            except WorkerError as error:
                self.lost = f"its machine is lost ({error})"
                raise

    def server(self, number: int) -> "FarServer":
        """One that has been made."""
        return FarServer(self, number)

    def watch(self) -> None:
        """Keep looking at its servers, in a thread."""
        threading.Thread(target=self._look, name="keeper", daemon=True).start()

    def ended(self, server: int) -> bool:
        """Whether a server had ended at the last look."""
        return bool(self.lost) or (server < len(self._ended) and self._ended[server])

    def forget(self, server: int) -> None:
        """A server is started anew: what the last look found is no more true."""
        if server < len(self._ended):
            self._ended[server] = False

    def release(self) -> None:
        """Hang up: its servers end."""
        self.lost = self.lost or "the run is over"
        self._worker.release()

    def _look(self) -> None:
        with contextlib.suppress(WorkerError):
            while not self.lost:
                time.sleep(_LOOK)
                self._ended = self.ask("ended")


class FarServer:
    """A server, or a part of one, on another machine, with a ``ServerProcess``'s methods.

    They raise WorkerError when that is lost.
    """

    def __init__(self, keeper: FarKeeper, number: int) -> None:
        self.keeper, self.number = keeper, number
        self.started, self.pid, self.places = False, 0, (keeper.place,)

    @property
    def lost(self) -> str:
        """Why it cannot be started again; empty when it can."""
        return self.keeper.lost

    @property
    def ended(self) -> bool:
        return self.started and self.keeper.ended(self.number)

    def start(self) -> None:
        self.pid, self.started = self.keeper.ask("start", self.number), True
        self.keeper.forget(self.number)

    def note_parts(self) -> None:
        self.keeper.ask("note_parts", self.number)

    def last_words(self) -> str:
        return f" nothing: {self.lost}." if self.lost else str(self.keeper.ask("last_words", self.number))

    def kill(self, gently: bool = False) -> None:
        if not self.lost:
            self.keeper.ask("kill", self.number, gently)


def main() -> None:
    """Serve rank 0 until it hangs up."""
    stop.leave_to_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    control, number, address = sys.argv[1:]
    key = key_from_environment()
    while True:  # until rank 0 listens, which reads its data first; this machine's supervisor ends what waits in vain
        try:
            connection = call_in(control, key, SESSION, int(number))
            break
        except (OSError, EOFError, AuthenticationError):
            time.sleep(_RETRY)
    with scratch.made(os.environ.get(scratch.SCRATCH)) as folder:
        keeper = Keeper(address, key, folder)
        try:
            answer_calls(connection, keeper, _METHODS)
        finally:
            for server in keeper.servers:
                server.kill()


if __name__ == "__main__":
    run(main)
