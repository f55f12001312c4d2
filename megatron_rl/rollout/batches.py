"""Requests that are awaited one by one, completed in batches: for an engine whose ``generate`` wants many at once."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

from megatron_rl.rollout.protocol import Completion, Request, Sampling
from megatron_rl.system.batched import Batched

Generate = Callable[[Sequence[Request], Sampling], list[list[Completion]]]


class Batches:
    """``complete`` by means of a ``generate``, as ``Batched``, for any number of event loops.

    Loops do not share batches: what a batch holds does not depend on what other threads do at the time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of_loop: WeakKeyDictionary[
            asyncio.AbstractEventLoop, dict[Sampling, Batched[Request, list[Completion]]]
        ] = WeakKeyDictionary()

    async def complete(self, generate: Generate, request: Request, sampling: Sampling) -> list[Completion]:
        """One completion for each of the request's seeds; raises what ``generate`` raised for its batch."""
        with self._lock:
            batched = self._of_loop.setdefault(asyncio.get_running_loop(), {})
        if sampling not in batched:
            batched[sampling] = Batched(lambda requests: generate(requests, sampling))
        return await batched[sampling](request)
