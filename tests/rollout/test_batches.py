"""Requests awaited one by one, and the batches that are made of them."""

import asyncio
import threading
from collections.abc import Sequence

from megatron_rl.rollout.batches import Batches
from megatron_rl.rollout.protocol import Completion, Request, Sampling
from tests.conftest import PATIENCE

SHORT, LONG = Sampling(2), Sampling(9)


class Recorder:
    """An engine that notes its batches; a prompt that begins with 0 is refused. It works while ``open`` is set."""

    def __init__(self) -> None:
        self.batches: list[tuple[list[int], Sampling]] = []
        self.open = threading.Event()
        self.open.set()

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Completion]]:
        self.batches.append(([request.tokens[0] for request in requests], sampling))
        assert self.open.wait(PATIENCE)
        if any(request.tokens[0] == 0 for request in requests):
            raise ValueError("no prompt begins with 0")
        return [
            [Completion([request.tokens[0], seed], [0.0, 0.0], "length", ((1, 2),)) for seed in request.seeds]
            for request in requests
        ]


def test_calls_of_one_tick_are_one_batch_in_their_order() -> None:
    engine, batches = Recorder(), Batches()

    async def group(first: int) -> list[list[Completion]]:
        return await asyncio.gather(
            *(batches.complete(engine.generate, Request([first + i], [5, 6]), SHORT) for i in range(3))
        )

    async def run() -> list[list[list[Completion]]]:
        first = await asyncio.gather(*(group(10 * i) for i in range(1, 4)))
        return [*first, await group(40)]

    groups = asyncio.run(run())
    expected = [[10 * i + j for j in range(3)] for i in range(1, 5)]
    assert engine.batches == [([*expected[0], *expected[1], *expected[2]], SHORT), (expected[3], SHORT)]
    assert [[[list(c.tokens) for c in each] for each in g] for g in groups] == [
        [[[first, 5], [first, 6]] for first in firsts] for firsts in expected
    ]


def test_what_is_asked_for_meanwhile_is_the_next_batch_of_its_sampling_and_others_do_not_wait() -> None:
    engine, batches = Recorder(), Batches()
    engine.open.clear()

    async def run() -> None:
        def ask(token: int, sampling: Sampling) -> "asyncio.Task[list[Completion]]":
            return asyncio.ensure_future(batches.complete(engine.generate, Request([token], [0]), sampling))

        tasks = [ask(1, SHORT)]
        while not engine.batches:
            await asyncio.sleep(0)
        for token, sampling in ((2, LONG), (3, SHORT), (4, LONG)):
            tasks.append(ask(token, sampling))
            await asyncio.sleep(0)
        given_up = ask(5, LONG)
        await asyncio.sleep(0)
        given_up.cancel()
        while len(engine.batches) < 2:  # the second is in a thread of its own
            await asyncio.sleep(0)
        engine.open.set()
        answers = await asyncio.gather(*tasks)
        assert [list(group[0].tokens) for group in answers] == [[1, 0], [2, 0], [3, 0], [4, 0]]
        assert given_up.cancelled()

    asyncio.run(run())
    assert engine.batches[:2] == [([1], SHORT), ([2], LONG)]
    assert sorted(engine.batches[2:], key=str) == sorted([([3], SHORT), ([4], LONG)], key=str)


def test_an_error_is_the_answer_to_its_batch_alone() -> None:
    engine, batches = Recorder(), Batches()

    async def run() -> None:
        complete = batches.complete
        asked = [complete(engine.generate, Request([token], [0]), SHORT) for token in (1, 0)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert [str(answer) for answer in answers] == ["no prompt begins with 0"] * 2
        assert list((await complete(engine.generate, Request([3], [0]), SHORT))[0].tokens) == [3, 0]

    asyncio.run(run())


def test_loops_do_not_share_batches_and_one_that_ends_leaves_the_others() -> None:
    engine, batches = Recorder(), Batches()
    engine.open.clear()

    async def ended() -> None:
        task = asyncio.ensure_future(batches.complete(engine.generate, Request([1], [0]), SHORT))
        while ([1], SHORT) not in engine.batches:
            await asyncio.sleep(0)
        assert not task.done()

    async def run(token: int) -> None:
        assert list((await batches.complete(engine.generate, Request([token], [0]), SHORT))[0].tokens) == [token, 0]

    loops = [ended(), run(2), run(3)]
    threads = [threading.Thread(target=asyncio.run, args=(loop,)) for loop in loops]
    for thread in threads:
        thread.start()
    while len(engine.batches) < 3:
        pass
    engine.open.set()
    for thread in threads:
        thread.join()
    assert sorted(batch for batch, _ in engine.batches) == [[1], [2], [3]]
    asyncio.run(run(4))
