"""A judge over HTTP: how close many calls at a time come to the least time that they can take.

    python -m benchmarks.judge [--calls 1000] [--seconds 0.2] [--concurrency 64] [--workers 1] [--rounds 3]

A server in a process of its own answers every call after so many seconds. The least time is calls x seconds over the
calls that are under way at once. What is timed is the pool's whole ``score``: the samples to the workers, the rubric
filled in, HTTP, the scores back. Nothing is cached: every text is another one. Then the same with calls of which one in
a hundred is never answered: those cost their samples the score.
"""

import argparse
import asyncio
import multiprocessing
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
from aiohttp import web

from megatron_rl.data.task import Sample
from megatron_rl.rewards.config import RewardsConfig
from megatron_rl.rewards.workers.pool import RewardPool

ANSWER = {
    "choices": [{"message": {"role": "assistant", "content": "<Score>0.5</Score>"}}],
    "usage": {"prompt_tokens": 100, "completion_tokens": 5},
}
STORY = "Sally puts the ball into the basket and leaves. Anne moves it to the box. " * 10


def serve(seconds: float, port: Connection) -> None:
    """Answer chat completions until the process is ended; the port goes to ``port``."""

    async def answer(request: web.Request) -> web.Response:
        body = await request.text()
        await asyncio.sleep(1e6 if "never" in body else seconds)
        return web.json_response(ANSWER)

    async def run() -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024)
        await site.start()
        port.send(runner.addresses[0][1])
        await asyncio.Event().wait()

    asyncio.run(run())


def samples(count: int, salt: str, hanging: bool = False) -> list[Sample]:
    """Completions that differ; of ``hanging`` ones every hundredth is never answered."""
    return [
        Sample("Q?", f"{salt} {i} {'never' if hanging and i % 100 == 7 else ''}", "A", extra={"story": STORY})
        for i in range(count)
    ]


def measure(options: argparse.Namespace, url: str, rubric: str) -> None:
    """Print the figures."""
    least = options.calls * options.seconds / (options.concurrency * options.workers)
    args = {"url": url, "model": "stub", "rubric": rubric, "timeout": 3.0, "retries": 0}
    config = RewardsConfig(
        terms={"judge": 1.0},
        args={"judge": args},
        workers=options.workers,
        concurrency=options.concurrency,
        deadline=3.5,
        first_deadline=60.0,
    )
    with RewardPool(config) as pool:
        pool.score(samples(options.concurrency * options.workers, "first"))
        for number in range(options.rounds):
            processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
            used = sum(sum(p.cpu_times()[:2]) for p in processes)
            start = time.monotonic()
            scored = pool.score(samples(options.calls, f"round {number}"))
            took = time.monotonic() - start
            used = sum(sum(p.cpu_times()[:2]) for p in processes) - used
            assert all(s.reward == 0.5 and s.components["judge/calls"] == 1 for s in scored)
            print(
                f"  {took:6.2f} s, {took / least:5.2f} x the least ({least:.2f} s); {used:.2f} CPU-s, server included"
            )
    config.deadline, config.args["judge"]["default"] = 3.0, 0.0
    with RewardPool(config) as pool:
        pool.score(samples(options.concurrency * options.workers, "first"))
        start = time.monotonic()
        scored = pool.score(samples(options.calls, "hanging", hanging=True))
        took = time.monotonic() - start
    lost = [i for i, s in enumerate(scored) if s.failure or s.components["judge/failures"]]
    assert all(i % 100 == 7 for i in lost)
    print(f"  one in a hundred never answered: {took:.2f} s; {len(lost)} of {options.calls} samples lost their score")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=0.2, help="that the server takes for a call")
    parser.add_argument("--concurrency", type=int, default=64, help="calls under way in a worker")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    port, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(options.seconds, theirs), daemon=True)
    server.start()
    with tempfile.TemporaryDirectory() as folder:
        rubric = Path(folder) / "rubric.txt"
        rubric.write_text("Story: {story}\nHow good is this, from 0 to 1? {response}\nAnswer <Score>x</Score>.")
        print(f"{options.calls} calls of {options.seconds:g} s, {options.concurrency} under way a worker")
        measure(options, f"http://127.0.0.1:{port.recv()}", str(rubric))
    server.terminate()


if __name__ == "__main__":
    main()
