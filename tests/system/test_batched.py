"""Calls that become one."""

import asyncio
import threading
from collections.abc import Sequence

import pytest

from megatron_rl.system.batched import Batched, in_thread
from tests.conftest import PATIENCE


def test_calls_of_one_tick_are_answered_together_in_their_order() -> None:
    asked: list[list[int]] = []

    def square(items: Sequence[int]) -> list[int]:
        asked.append(list(items))
        assert threading.current_thread() is not threading.main_thread()
        return [item**2 for item in items]

    async def main() -> list[int]:
        batched = Batched(square)

        async def twice(item: int) -> int:
            return await batched(await batched(item))

        return await asyncio.gather(*map(twice, range(5)))

    assert asyncio.run(main()) == [item**4 for item in range(5)]
    assert asked == [[0, 1, 2, 3, 4], [0, 1, 4, 9, 16]]


def test_calls_that_come_meanwhile_are_the_next_batch() -> None:
    asked: list[list[int]] = []
    gate = threading.Event()

    def wait(items: Sequence[int]) -> Sequence[int]:
        asked.append(list(items))
        assert gate.wait(PATIENCE)
        return items

    async def main() -> None:
        batched = Batched(wait)
        calls = [asyncio.create_task(batched(0))]
        while not asked:
            await asyncio.sleep(0.001)
        for item in (1, 2):
            calls.append(asyncio.create_task(batched(item)))
            await asyncio.sleep(0)
        gate.set()
        assert await asyncio.gather(*calls) == [0, 1, 2]

    asyncio.run(main())
    assert asked == [[0], [1, 2]]


def test_errors_reach_those_who_asked_and_no_others() -> None:
    def reject(items: Sequence[int]) -> Sequence[int]:
        if 1 in items:
            raise ValueError(f"not {items[0]}")
        return items

    async def main() -> None:
        batched = Batched(reject)
        answers = await asyncio.gather(batched(1), batched(2), return_exceptions=True)
        assert [str(answer) for answer in answers] == ["not 1", "not 1"]
        assert await batched(3) == 3
        with pytest.raises(RuntimeError, match="SystemExit"):
            await in_thread(lambda: exit(1))

    asyncio.run(main())
