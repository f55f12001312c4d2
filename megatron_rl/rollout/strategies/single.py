"""One prompt, independent completions: the plain case."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron_rl.data.task import Example
from megatron_rl.rollout.protocol import Completion
from megatron_rl.rollout.rollout import Rollout, from_completion
from megatron_rl.rollout.strategies import Complete, Score


@dataclass(frozen=True)
class Single:
    """``encode``: a prompt's tokens; ``decode``: what is scored of a completion."""

    encode: Callable[[str], tuple[int, ...]]
    decode: Callable[[Completion], str]

    async def group(self, example: Example, size: int, complete: Complete, score: Score) -> list[Rollout]:
        """As ``Strategy.group``."""
        prompt = self.encode(example.prompt)
        tokens = np.array(prompt, dtype=np.int64)  # once for all of them
        rollouts = [from_completion(example, tokens, c, self.decode(c)) for c in await complete(prompt, size)]
        await score(rollouts)
        return rollouts

    def observe(self, groups: Sequence[Sequence[Rollout]]) -> None:
        """As ``Strategy.observe``."""

    def state(self) -> dict[str, Any]:
        """As ``Strategy.state``."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """As ``Strategy.restore``."""
