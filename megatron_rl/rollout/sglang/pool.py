"""All SGLang servers of a run as one ``protocol.Engine``: an event loop in a thread of rank 0."""

import asyncio
import os
import secrets
import tempfile
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import numpy as np
import torch

from megatron_rl.errors import SwapError
from megatron_rl.resharding.nearest import Nearness, readers
from megatron_rl.resharding.swap import SwapSource
from megatron_rl.resharding.terms import Attached, Reach, SwapReport
from megatron_rl.resharding.transports.meeting import BACKENDS, MeetingPlace
from megatron_rl.rollout.config import Served
from megatron_rl.rollout.protocol import Completion, Request, Sampling
from megatron_rl.rollout.sglang.full_tensors import FullTensors
from megatron_rl.rollout.sglang.generation import generate
from megatron_rl.rollout.sglang.replica import LostError, Replica
from megatron_rl.rollout.sglang.servers.hosts import Hosts
from megatron_rl.rollout.sglang.servers.http import Server, ServerError
from megatron_rl.rollout.sglang.servers.keeper import SESSION
from megatron_rl.rollout.sglang.servers.router import Router
from megatron_rl.rollout.sglang.started import servers
from megatron_rl.rollout.sglang.swap import Network, Swapped
from megatron_rl.rollout.sglang.transport import chosen_transport, control_host
from megatron_rl.system import machine, scratch
from megatron_rl.system.channel import api_key, parse_address, written
from megatron_rl.system.control import Control, WorkerError
from megatron_rl.system.scratch import SCRATCH

_T = TypeVar("_T")
_WATCH = 0.5  # seconds between looks at the servers' processes
_BESIDE = 32  # threads at most for what would hold the event loop up
_LOOK = 0.05  # seconds between looks for a server that is armed
_IDLE = 2.0  # seconds after which a connection is not used again
_RECOVERABLE = (ServerError, WorkerError)


class SGLangEngines:
    """A ``protocol.Engine`` over one or more servers, which it starts (or adopts) and watches over.

    They start at once, but on the trainer's GPUs when they are attached: a server gives its cache a share of the memory
    that is free when it starts, and by then the trainer has taken its own.
    """

    def __init__(self, served: Served, model_folder: Path, key: bytes, logs: Path, hosts: Hosts | None = None) -> None:
        self.served, self.options = served, served.rollout.sglang
        self.dtype: torch.dtype = getattr(torch, served.dtype)
        self.key, self.logs = key, logs
        self._folder = self._make_folder()
        hosts = hosts or Hosts((served.rollout.engines,), (served.trainers,))
        self.host = (hosts.control and parse_address(hosts.control)[0]) or control_host(self.options)
        socket = written(self.host, machine.free_port(self.host)) if self.host else str(self._folder / "control")
        self.control = Control(hosts.control or socket, key)
        self.control.session(SESSION)
        self._backend = ""  # where the trainer's ranks have to send
        self._sessions: tuple[tuple[str, Nearness], ...] = ()
        self._started = servers(served, model_folder, key, self._folder, logs, self.control, hosts)
        self.replicas = self._started.replicas
        self.router: Router | None = None
        self.source: SwapSource | None = None
        self._plan = ""  # its hash
        self._way: FullTensors | None = None  # how weights get into a server; None: its workers pull them
        self.proof: tuple[int, np.ndarray] | None = None  # of the last swap: its version and its owners' hashes
        self.failed = "no complete swap yet"  # why nothing is served; empty: the last swap was proved
        self._still = False  # whether the trainer's weights are as they were at the last swap
        self._generating = 0  # calls under way
        self._asked = self._answered = 0  # completions since no call was under way
        # So many that no server waits for its next one while its last answer is on the way.
        self._slots = asyncio.Semaphore(2 * served.rollout.max_running * len(self.replicas))
        self._swapping: tuple[asyncio.Future[np.ndarray], Future[list[Swapped]]] | None = None
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(ThreadPoolExecutor(_BESIDE, "sglang"))
        threading.Thread(target=self._loop.run_forever, name="sglang", daemon=True).start()
        self._do(self._open())

    def reach(self, places: Sequence[str]) -> Reach:
        """See ``protocol.Engine``."""
        transport = chosen_transport(self.options, places, self._started.elsewhere)
        if transport in BACKENDS:
            self._backend, at, workers = transport, tuple(places), self.options.tensor_parallel
            near = (Nearness(at, replica.places, workers, number) for number, replica in enumerate(self.replicas))
            self._sessions = tuple((self.control.session(), each) for each in near)
        control = self.control.address
        if self._sessions and not self.host and set(places) != {machine.place()}:
            self.host = machine.own_address()
            control = written(self.host, machine.free_port(self.host))
            self.control.listen(control)
        return Reach(
            transport,
            control,
            self._sessions,
            folder=str((self.served.folder / "swap").absolute()),
            attempt=secrets.token_hex(8),
            seconds=self.options.swap_seconds,
            fp8=self.options.fp8,
            colocated=self.options.colocated,
        )

    def attach(self, source: SwapSource) -> Attached:
        """See ``protocol.Engine``; waits until the servers are ready. Raises InputError for one that does not start."""
        self.source, self.failed, self._still = source, "no complete swap since the engines were attached", False
        options, host = self.options, self.host or "127.0.0.1"
        self._way = None
        if options.swap != "pull":
            self._way = FullTensors(
                source, options.swap, options.tensor_parallel, self._folder, host, options.swap_seconds
            )
        attached = self._do(self._attach())
        if len({each.plan_hash for each in attached}) > 1:
            raise SwapError("the engines made different plans: are they servers of one kind?")
        self._plan = attached[0].plan_hash
        return attached[0]

    def begin_swap(self, version: int) -> None:
        """See ``protocol.Engine``."""
        if self.source is None:
            raise SwapError("the engines are not attached to a trainer")
        if self._swapping is not None:
            raise SwapError(f"swap {version} began before the last one was finished")
        hashes: asyncio.Future[np.ndarray] = self._loop.create_future()
        self._swapping = hashes, asyncio.run_coroutine_threadsafe(self._swap_all(version, hashes), self._loop)

    def finish_swap(self, version: int, hashes: np.ndarray) -> SwapReport:
        """See ``protocol.Engine``; servers that fail for another reason than the weights are restarted and swapped."""
        if self._swapping is None:
            raise SwapError(f"swap {version} was not begun")
        expected, swapping = self._swapping
        self._swapping = None
        self._loop.call_soon_threadsafe(_set, expected, hashes)
        try:
            done = swapping.result()
        except BaseException as error:
            self.failed = f"swap {version} failed: {error}"
            raise
        self.proof, self.failed, self._still = (version, hashes), "", True
        phases = {name: max(each.seconds.get(name, 0.0) for each in done) for name in done[0].seconds}
        size = sum(each.bytes for each in done)
        return SwapReport(version, self._plan, size, phases.pop("copy"), phases)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Completion]]:
        """See ``protocol.Engine``. Raises ConnectionError when no server is left."""
        return self._do(self._generate(requests, sampling))

    async def complete(self, request: Request, sampling: Sampling) -> list[Completion]:
        """See ``protocol.Engine``. Raises as ``generate`` does."""
        asked = asyncio.run_coroutine_threadsafe(self._generate([request], sampling), self._loop)
        return (await asyncio.wrap_future(asked))[0]

    def progress(self) -> tuple[int, int]:
        """See ``protocol.Engine``."""
        return self._answered, self._asked

    def release(self) -> None:
        """See ``protocol.Engine``: a server that is lost from now on comes back at the next swap only."""
        self._still = False
        if self.options.colocated:
            self._do(self._each(lambda replica: replica.release()))
            self.failed = "the engines gave back their memory"

    def stalled(self) -> bool:
        """See ``protocol.Engine``: all servers were lost after ``release``."""
        armed = any(replica.armed for replica in self.replicas)
        return bool(self._generating) and not self._still and not armed

    def health(self) -> dict[str, Any]:
        """``engines``: address, process id, weight version (-1: poisoned), why, and restarts of each."""
        return {"engines": [replica.health() for replica in self.replicas]}

    def stop(self) -> None:
        """End what was started here."""
        self._do(self._close())
        if self.router is not None:
            self.router.stop()
        for replica in self.replicas:
            if replica.process is not None:
                with suppress(WorkerError):  # it is on another machine, which has gone
                    replica.process.kill(gently=True)
            if replica.swap.network is not None:
                for sender in replica.swap.network.senders:
                    sender.release()
        for keeper in self._started.keepers:
            keeper.release()
        self.control.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._removing.close()

    def _make_folder(self) -> Path:
        """For a socket and keys: in the run's own, which outlives this process, where the run has been launched."""
        run, self._removing = os.environ.get(SCRATCH), ExitStack()
        made = tempfile.TemporaryDirectory(prefix="mrl-", dir=run) if run else scratch.made()
        return Path(self._removing.enter_context(made))  # type: ignore[arg-type]

    async def _open(self) -> None:
        # A swap's calls share a connection. SGLang closes one that was idle for 5 s (SGLANG_TIMEOUT_KEEP_ALIVE), which
        # a large body would find out too late: it is let go before.
        self._http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE))
        key = api_key(self.key)
        for replica in self.replicas:
            replica.open(self._http, key, reads=self.options.swap == "pull")
        if not self._started.shares:
            self._start()
        self._watching = [asyncio.ensure_future(self._watch(replica)) for replica in self.replicas]
        if len(self.replicas) > 1:
            seconds = self.options.start_seconds
            self.router = Router(machine.free_low_port(), self.key, self.logs / "router.log", seconds)
            self._watching.append(asyncio.ensure_future(self.router.watch(self.options.restarts, self._serving)))

    def _start(self) -> None:
        for replica in self.replicas:
            if replica.process is not None and not replica.process.started:
                replica.process.start()

    async def _close(self) -> None:
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        await self._http.close()

    async def _attach(self) -> list[Attached]:
        assert self.source is not None
        source, dtype = self.source, self.dtype
        async with AsyncExitStack() as held:
            for replica in self.replicas:  # one may be on its way back, and a server is given to one at a time
                await held.enter_async_context(replica.lock)
            self._start()
            await self._each(lambda replica: replica.ready())
            if self.router is not None and self.router.server is None:
                await self.router.connect(Server(self._http, self.router.url, api_key(self.key)))
            await self._connect_ranks(source)
            return await self._each(lambda replica: replica.attach(source, dtype))

    async def _connect_ranks(self, source: SwapSource) -> None:
        """Where trainer ranks have to send: wait for their calls."""
        if not self._sessions:
            return
        place, seconds = MeetingPlace(self.host or "127.0.0.1"), self.options.swap_seconds
        layout = await asyncio.to_thread(source.layout)
        for replica, (session, near) in zip(self.replicas, self._sessions, strict=True):
            reading = readers(layout, near)
            senders = await self.control.collected(session, "trainer rank", reading, seconds)
            replica.swap.network = Network(place, self._backend, len(layout.ranks), reading, senders)

    async def _swap_all(self, version: int, hashes: "asyncio.Future[np.ndarray]") -> list[Swapped]:
        swapped = await self._each(lambda replica: self._swap(replica, version, hashes))
        if not (done := [each for each in swapped if each is not None]):
            raise SwapError("no server is left: " + "; ".join(replica.lost for replica in self.replicas))
        return done

    async def _swap(self, replica: Replica, version: int, hashes: "asyncio.Future[np.ndarray]") -> Swapped | None:
        """Swap one server, again if it fails, in a new process if it must; None where its machine is lost."""
        assert self.source is not None
        async with replica.lock:
            while True:
                if self.router is not None and (replica.gone or replica.failed is not None):
                    await self.router.remove(replica.url)
                try:
                    await replica.prepare(self.source, self.dtype)
                    swapped = await replica.bring(version, asyncio.shield(hashes), self._way)
                    break
                except LostError as error:
                    if replica.off:
                        self._lose(replica, error)
                        return None
                    raise SwapError(f"{replica.name} could not be swapped: {error}") from error
                except _RECOVERABLE as error:
                    replica.failed = error
            if self.router is not None:
                await self.router.add(replica.url, lambda: replica.serving)
            return swapped

    async def _generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Completion]]:
        if self.failed:
            raise SwapError(f"the engines serve nothing: {self.failed}")
        target = self.router.server if self.router is not None else self.replicas[0].server
        assert target is not None
        self._generating += 1
        self._asked += sum(len(request.seeds) for request in requests)
        try:
            return await generate(
                target,
                requests,
                sampling,
                slots=self._slots,
                seconds=self.options.request_seconds,
                available=self._available,
                abort=self._abort,
                done=self._count,
            )
        finally:
            self._generating -= 1
            if not self._generating:
                self._asked = self._answered = 0

    def _count(self) -> None:
        self._answered += 1

    async def _available(self) -> None:
        """Wait for a server that can generate. Raises ServerError when all are lost."""
        router = self.router
        while not any(r.armed and (router is None or router.serves(r.url)) for r in self.replicas):
            if all(replica.lost for replica in self.replicas):
                raise ServerError("; ".join(replica.lost for replica in self.replicas))
            if router is not None and router.lost:
                raise ServerError(router.lost)
            await asyncio.sleep(_LOOK)

    async def _abort(self, name: str) -> None:
        for replica in self.replicas:
            if replica.armed:
                with suppress(ServerError):
                    await replica.server.abort(name)

    async def _watch(self, replica: Replica) -> None:
        """While completions are made: notice a server that ended or does not answer, and bring it back."""
        checked = self._loop.time()
        while not replica.lost:
            await asyncio.sleep(_WATCH)
            if not self._generating or replica.lock.locked():
                continue
            before, why = replica.paused, ""
            if replica.gone:
                why = "it ended"
            elif replica.armed and self._loop.time() - checked > self.options.health_seconds / 2:
                why = await replica.ailment()
                checked = self._loop.time()
            if replica.paused != before or replica.lock.locked():  # paused, it does not answer
                continue
            if why or (self._still and not replica.armed):
                async with replica.lock:
                    await self._revive(replica, why)

    def _serving(self) -> list[tuple[str, Callable[[], bool]]]:
        """For a router that has none."""
        return [(r.url, partial(getattr, r, "serving")) for r in self.replicas if r.serving]

    async def _revive(self, replica: Replica, why: str) -> None:
        """Restart a server and bring it back to the weights that are served; at the next swap if they are changing."""
        assert self.source is not None and self.proof is not None
        try:
            if why:
                if self.router is not None:
                    await self.router.remove(replica.url)
                await replica.restart(why)
            if not self._still:
                return
            await replica.prepare(self.source, self.dtype)
            version, hashes = self.proof
            expected: asyncio.Future[np.ndarray] = self._loop.create_future()
            expected.set_result(hashes)
            await replica.bring(version, expected, self._way)
            if self.router is not None:
                await self.router.add(replica.url, lambda: replica.serving)
        except SwapError as error:  # the trainer went on meanwhile
            print(f"{replica.name} waits for the next swap: {error}", flush=True)
        except Exception as error:
            replica.failed = error
            if isinstance(error, LostError) or not isinstance(error, _RECOVERABLE):  # else it is tried again
                self._lose(replica, error)

    def _lose(self, replica: Replica, error: Exception) -> None:
        if not replica.lost:
            print(f"{replica.name} is lost: {error}", flush=True)
        if replica.off and self._generating and self.router is not None:  # it waits for a machine that is not there
            self.router.ready = False
        replica.lost = str(error)

    async def _each(self, call: Any) -> list[Any]:
        """Call for every replica at the same time; the first error, after all are done."""
        calls = (call(replica) for replica in self.replicas if not (replica.off and replica.lost))
        answers = await asyncio.gather(*calls, return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return list(answers)

    def _do(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


def _set(future: "asyncio.Future[np.ndarray]", value: np.ndarray) -> None:
    if not future.done():
        future.set_result(value)
