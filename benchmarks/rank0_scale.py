"""What a step of a large run costs rank 0: python -m benchmarks.rank0_scale [--tokens N]

512 trainer ranks (tensor 8 x data 64) and 64 engines of 8 workers, a dense model of 64 layers, on one machine. Rank 0's
side is the trainer's own code. The others are their protocol ends only, in a few forked processes: workers and ranks
call in and answer as the real ones do, servers answer SGLang's routes, and one rank of each data-parallel share takes
its rows over gloo (the others get theirs from it). All engines are sent to over the network, each by the ranks that
``nearest.readers`` chooses. Nobody has weights. Says CPU and wall seconds of rank 0's process by part, and what it
holds.
"""

import argparse
import asyncio
import base64
import contextlib
import json
import multiprocessing
import os
import pickle
import resource
import secrets
import selectors
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any

import aiohttp
import numpy as np
import torch
import torch.distributed as dist
from aiohttp import web

from benchmarks.plan import timed
from megatron_rl.actor import groups
from megatron_rl.actor.config import ActorConfig
from megatron_rl.actor.trainer import Actor
from megatron_rl.config import Config
from megatron_rl.data.task import Example
from megatron_rl.resharding.layout import ParallelSizes
from megatron_rl.resharding.layouts.megatron import megatron_layout
from megatron_rl.resharding.layouts.sglang import EngineSizes, sglang_layout
from megatron_rl.resharding.nearest import Nearness, read_by, readers
from megatron_rl.resharding.plan import make_plan
from megatron_rl.resharding.replicas import Replicas
from megatron_rl.resharding.swap import SwapSource, merge_hashes
from megatron_rl.resharding.transports.choose import Shapes
from megatron_rl.rollout.config import SGLangConfig
from megatron_rl.rollout.protocol import Completion
from megatron_rl.rollout.rollout import Rollout, from_completion
from megatron_rl.rollout.sglang.replica import Replica
from megatron_rl.rollout.sglang.servers.process import HOOK
from megatron_rl.rollout.sglang.swap import Network
from megatron_rl.rollout.sglang.worker import METHODS as WORKER_METHODS
from megatron_rl.swap.sender import METHODS as RANK_METHODS
from megatron_rl.system import machine
from megatron_rl.system.channel import api_key
from megatron_rl.system.control import Control, answer, call_in
from megatron_rl.system.processes import settle
from megatron_rl.training.batch import Batch
from megatron_rl.training.rows import Rows, credited

MODEL: dict[str, Any] = {
    "model_type": "qwen3",
    "vocab_size": 151936,
    "hidden_size": 5120,
    "intermediate_size": 25600,
    "num_hidden_layers": 64,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "attention_bias": False,
}
SIZES = ParallelSizes(tensor=8, data=64)
ENGINES, WORKERS, PROCESSES = 64, 8, 4
PROMPTS, GROUP, PROMPT_TOKENS = 512, 16, 512
KEY = secrets.token_bytes(16)
SECONDS = 600.0
LARGE = {"learn": 2, "attach": 2, "plan": 3}  # asked with a layout: the number of arguments


class Planned:
    """What all ends know."""

    def __init__(self) -> None:
        self.source = megatron_layout(MODEL, SIZES, fused_norms=True, grouped_experts=True)
        self.destination = sglang_layout(MODEL, EngineSizes(tensor=WORKERS))
        self.plan = make_plan(self.source, self.destination)
        self.hash = self.plan.hash
        self.readers = [readers(self.source, Nearness(workers=WORKERS, number=i)) for i in range(ENGINES)]
        sent = [read_by(self.plan, self.source, ranks) for ranks in self.readers]
        self.sends = {(i, r): bool(sent[i].copies_from(r)) for i, ranks in enumerate(self.readers) for r in ranks}
        self.own = [np.array(self.plan.copies_to(worker)) for worker in range(WORKERS)]


class Worker:
    """Answers as a worker of an engine does."""

    def __init__(self, planned: Planned, rank: int) -> None:
        self.planned, self.rank = planned, rank

    def config(self) -> dict[str, Any]:
        return MODEL

    def learn(self, tensors: Any, dtype: Any) -> Any:
        shard = self.planned.destination.ranks[self.rank]
        return shard, frozenset(), dict.fromkeys(shard.locals, "bfloat16")

    def attach(self, source: Any, layout: Any) -> tuple[str, np.ndarray]:
        return self.planned.hash, self.planned.own[self.rank]

    def connect(self, meeting: Any) -> None: ...
    def commit(self, version: int) -> None: ...
    def verify(self, version: int, hashes: np.ndarray) -> None:
        assert np.array_equal(hashes, self.planned.own[self.rank].astype(np.uint64))

    def pull(self, version: int) -> tuple[float, int]:
        return 0.0, 1


class Rank:
    """Answers as a trainer's rank does."""

    def __init__(self, planned: Planned, engine: int, rank: int) -> None:
        self.planned, self.engine, self.rank = planned, engine, rank

    def plan(self, layout: Any, dtypes: Any, readers: Any) -> tuple[str, bool]:
        return self.planned.hash, self.planned.sends[self.engine, self.rank]

    def connect(self, meeting: Any) -> None: ...
    def push(self, version: int) -> None: ...


def respond(connection: Connection, target: Any, methods: tuple[str, ...]) -> None:
    """Answer once. What is as large as a layout is read and not unpickled: a thousand processes share two cores."""
    content = connection.recv_bytes()
    large = next((name for name in LARGE if name.encode() in content[:32]), None)
    method, arguments = (large, (None,) * LARGE[large]) if large else pickle.loads(content)
    connection.send(answer(target, methods, method, arguments))


def serve_engines(planned: Planned, port: int) -> None:
    """SGLang's routes of a share of the engines, each below a path of its own."""
    info = {"version": "0.5.21", "tp_size": WORKERS, "custom_weight_loader": [HOOK], "disable_radix_cache": True}

    async def said(request: web.Request) -> web.Response:
        if request.path.endswith("/server_info"):
            return web.json_response(info)
        return web.json_response({"success": True, "paths": {"/begin_weight_update": {}}})

    async def update(request: web.Request) -> web.Response:
        body = await request.json()
        ((name, _),) = pickle.loads(base64.b64decode(body["serialized_named_tensors"][0]))
        call = json.loads(name)

        def obey(rank: int) -> None:
            connection = call_in(call["control"], KEY, call["session"], rank)
            with connection, contextlib.suppress(EOFError, OSError):
                while True:
                    respond(connection, Worker(planned, rank), WORKER_METHODS)

        await asyncio.gather(*(asyncio.to_thread(obey, rank) for rank in range(WORKERS)))
        return web.json_response({"success": True})

    async def run() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(ENGINES * WORKERS))
        app = web.Application(client_max_size=1 << 30)
        app.router.add_post("/{engine}/update_weights_from_tensor", update)
        app.router.add_route("*", "/{engine}/{path}", said)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, backlog=1024).start()
        await asyncio.Event().wait()

    asyncio.run(run())


def serve_ranks(planned: Planned, control: str, ranks: range, sessions: list[str], go: Any) -> None:
    """Connections of a share of the trainer's ranks."""
    go.wait()
    selector = selectors.DefaultSelector()
    for engine, session in enumerate(sessions):
        for rank in set(ranks) & set(planned.readers[engine]):
            connection = call_in(control, KEY, session, rank)
            selector.register(connection, selectors.EVENT_READ, Rank(planned, engine, rank))
    while selector.get_map():
        for key, _ in selector.select():
            connection = key.fileobj  # type: ignore[assignment]
            try:
                respond(connection, key.data, RANK_METHODS)
            except (EOFError, OSError):
                selector.unregister(connection)


def take_rows(rank: int, port: int) -> None:
    """The first rank of a data-parallel share."""
    join(rank, port)
    shares = list(range(SIZES.data))
    while groups.scatter(None, shares) is not None:
        dist.barrier()
    os._exit(0)


def join(rank: int, port: int) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = dist.TCPStore("127.0.0.1", port, is_master=rank == 0, wait_for_workers=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=SIZES.data)


async def swaps(planned: Planned, control: Control, ports: list[int], sessions: list[str], go: Any) -> None:
    """Attach all engines, then swap them three times."""
    options = SGLangConfig(tensor_parallel=WORKERS, swap_seconds=SECONDS, health_seconds=SECONDS)
    urls = [f"http://127.0.0.1:{ports[i % PROCESSES]}/{i}" for i in range(ENGINES)]
    replicas = [Replica(url, url, None, options, control) for url in urls]
    source = SwapSource(MODEL, SIZES, True, True, [Shapes(shard.locals) for shard in planned.source.ranks])
    expected = np.arange(len(planned.plan.copies), dtype=np.uint64)
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=2)
    async with aiohttp.ClientSession(connector=connector) as http:
        for replica in replicas:
            replica.open(http, api_key(KEY), reads=False)
        await part("servers ready", asyncio.gather(*(r.ready() for r in replicas)))
        go.set()

        async def ranks_call() -> None:
            for replica, session, reading in zip(replicas, sessions, planned.readers, strict=True):
                senders = await control.collected(session, "trainer rank", reading, SECONDS)
                place: Any = SimpleNamespace(meeting=lambda *_: None)
                replica.swap.network = Network(place, "gloo", SIZES.world, reading, senders)

        await part("ranks call in", ranks_call())
        await part("attach, once", asyncio.gather(*(r.attach(source, torch.bfloat16) for r in replicas)))
        for version in range(3):
            ready: asyncio.Future[np.ndarray] = asyncio.get_running_loop().create_future()
            ready.set_result(expected)
            bring = asyncio.gather(*(r.bring(version, asyncio.shield(ready), None) for r in replicas))
            await part(f"swap {version} of {ENGINES} engines", bring)
        held(f"rank 0 with {ENGINES} engines")


async def part(what: str, work: Awaitable[Any]) -> None:
    wall, cpu = time.perf_counter(), time.process_time()
    await work
    print(f"{what:36}{time.perf_counter() - wall:8.2f} s {time.process_time() - cpu:8.2f} CPU-s", flush=True)


def held(what: str) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    files = len(os.listdir("/proc/self/fd"))
    print(f"{what}: {threading.active_count()} threads of Python, {files} open files, peak {peak:,.0f} MB", flush=True)


def batch(tokens: int) -> None:
    """A step's rollouts to every rank's rows, thrice: the third lies in the memory of the first."""
    rng = np.random.default_rng(0)
    options = ActorConfig(tensor_parallel=SIZES.tensor, data_parallel=SIZES.data, micro_batch_tokens=16384)
    policy: Any = SimpleNamespace(
        config=options, arch=SimpleNamespace(layers=64, experts_per_token=0), shares_prompts=False
    )
    config, prompt = Config(actor=options), np.arange(PROMPT_TOKENS)
    shares = list(range(SIZES.data))
    settle()  # as a run does
    example: Any = Example.__new__(Example)
    completions = []
    for _ in range(PROMPTS * GROUP):
        drawn = rng.integers(0, 150_000, int(rng.integers(tokens // 2, tokens + 1))).tolist()
        completions.append(Completion(drawn, [-0.5] * len(drawn), "stop", ((0, len(drawn)),)))
    for _ in range(3):
        rollouts: list[Rollout] = timed(
            "completions as rollouts", lambda: [from_completion(example, prompt, c, "") for c in completions]
        )
        scattered(policy, config, rollouts, shares)
        dist.barrier()
    groups.scatter([None] * SIZES.data, shares)


def scattered(policy: Any, config: Config, rollouts: list[Rollout], shares: list[int]) -> None:
    for r in rollouts:
        r.scored = SimpleNamespace(reward=1.0, components={"a/score": 1.0}, report=None, step=0)
    rows = timed("rollouts as rows", lambda: Rows(config, rollouts).made(0, len(rollouts)))
    rewards, terms = timed("rewards", lambda: credited(rollouts, lambda _: {"a": 1.0}))
    numbers = np.arange(PROMPTS).repeat(GROUP)
    parts = timed("split over ranks", lambda: Actor.split(policy, rows))
    made = [Batch([mine], ["weight", "rollout_logprobs"], rewards, numbers, terms, [True]) for mine in parts]
    timed("scatter", lambda: groups.scatter(made, shares))


def proofs(planned: Planned) -> None:
    """What every rank says of its weights in a swap, as rank 0 puts it together."""
    replicas = timed("(once) who holds what", lambda: Replicas(planned.source))
    said = []
    for rank in range(SIZES.world):
        own = np.array(planned.plan.copies_from(rank), dtype=np.int64)
        held = np.zeros(len(replicas._boxes[rank]), dtype=np.uint64)
        said.append(pickle.dumps(((own, own.astype(np.uint64)), held)))
    for _ in range(2):
        heard: list[Any] = timed("unpickle all ranks' hashes", lambda: [pickle.loads(each) for each in said])
        owned, all_held = [own for own, _ in heard], [held for _, held in heard]
        timed("merge the owners' hashes", partial(merge_hashes, planned.plan, owned))
        found = timed("compare replicas", partial(replicas.differing, all_held))
        assert not found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=4096, help="of a completion, at most")
    given = parser.parse_args()
    kept = {name: str(size) for name, size in machine.KEPT.items()}  # as a run's ranks have it, from their start on
    if not kept.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks.rank0_scale", *sys.argv[1:]], os.environ | kept)
    fork, processes = multiprocessing.get_context("fork"), []

    def start(target: Callable[..., None], *arguments: Any) -> None:
        processes.append(fork.Process(target=target, args=arguments, daemon=True))
        processes[-1].start()

    planned: Planned = timed("plan", Planned)
    meeting, go = machine.free_port(), fork.Event()
    address, ports = f"127.0.0.1:{machine.free_port()}", [machine.free_port() for _ in range(PROCESSES)]
    sessions = [f"engine{i}" for i in range(ENGINES)]
    for rank in range(1, SIZES.data):
        start(take_rows, rank, meeting)
    for number, port in enumerate(ports):
        start(serve_engines, planned, port)
        start(serve_ranks, planned, address, range(number, SIZES.world, PROCESSES), sessions, go)
    try:
        print(f"-- swap: {ENGINES} engines x {WORKERS} workers, each sent to by {len(planned.readers[0])} ranks")
        control = Control(address, KEY)
        for session in sessions:
            control.session(session)
        asyncio.run(swaps(planned, control, ports, sessions, go))
        print(f"-- proof: {len(planned.plan.copies):,} copies, {SIZES.world} ranks")
        proofs(planned)
        print(f"-- batch: {PROMPTS} x {GROUP} completions of up to {given.tokens} tokens, {SIZES.data} shares")
        join(0, meeting)
        batch(given.tokens)
    finally:
        for process in processes:
            process.kill()


if __name__ == "__main__":
    main()
