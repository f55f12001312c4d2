"""Groups of rollouts of many examples at once: a strategy's, on an engine, scored."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import xxhash

from megatron_rl.data.task import Example
from megatron_rl.rollout.protocol import Completer, Completion, Request, Sampling
from megatron_rl.rollout.rollout import Rollout
from megatron_rl.rollout.strategies import Strategy
from megatron_rl.system.batched import Batched


@dataclass
class Collected:
    """What one call of ``collect`` made."""

    groups: list[list[Rollout]]
    seconds: dict[str, float] = field(default_factory=dict)  # "generate": until all were complete, "reward": then

    def flat(self) -> list[Rollout]:
        """All rollouts, group after group."""
        return [rollout for group in self.groups for rollout in group]


def collect(
    examples: Sequence[Example],
    size: int,
    strategy: Strategy,
    engine: Completer,
    sampling: Sampling,
    score: Callable[[Sequence[Sequence[Rollout]]], Sequence[None]],
    seed: str,
    first: int = 0,
) -> Collected:
    """``size`` rollouts of each example, in the examples' order.

    ``score`` blocks, and fills ``scored`` of every rollout of the groups that it is given. The seed of a completion
    depends on ``seed``, on the place of its example, counted from ``first``, and on its place in the group alone. For
    any thread, several at a time.
    """

    async def run() -> Collected:
        started = generated = time.perf_counter()
        scored: Batched[Sequence[Rollout], None] = Batched(score)

        async def group(place: int, example: Example) -> list[Rollout]:
            drawn = 0

            async def complete(tokens: Sequence[int], count: int) -> list[Completion]:
                nonlocal drawn, generated
                seeds = [_seed(f"{seed}/{place}/{number}") for number in range(drawn, drawn + count)]
                drawn += count
                completions = await engine.complete(Request(tokens, seeds), sampling)
                generated = time.perf_counter()
                return completions

            return await strategy.group(example, size, complete, scored)

        groups = await asyncio.gather(*(group(place, example) for place, example in enumerate(examples, start=first)))
        seconds = {"generate": generated - started, "reward": time.perf_counter() - generated}
        return Collected(groups, seconds)

    return asyncio.run(run())


def _seed(name: str) -> int:
    return xxhash.xxh3_64_intdigest(name.encode()) >> 1
