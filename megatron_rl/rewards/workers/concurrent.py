"""Asynchronous rewards: many samples under way at once in one worker, each with a deadline of its own.

::

    samples, in their order ─▶ lane 1: score ─▶ report ─▶ Done, or Late at the deadline ─▶ the next sample
                            ─▶ lane 2: …                       rewards.concurrency lanes

What a coroutine awaits holds up nobody. A deadline cancels it, and does not wait for it to end: one that will not be
cancelled is left alone. A reward that computes, or blocks, holds up the whole loop; the pool sees that nothing comes
any more and ends the worker.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence

from megatron_rl.data.task import Report, Sample
from megatron_rl.errors import InputError
from megatron_rl.rewards.workers.messages import Done, Failed, Late
from megatron_rl.rewards.workers.terms import Term, report_sample, score_concurrently

Write = Callable[..., None]  # a message; look: the pool is to read it at once


class _Batch:
    """The samples of one batch that have not begun, which all lanes take from."""

    def __init__(
        self, terms: Sequence[Term], report: Report | None, samples: Sequence[Sample], limits: tuple[float, float]
    ) -> None:
        self.terms, self.report, self.limits = terms, report, limits
        self.left: Iterator[tuple[int, Sample]] = iter(enumerate(samples))
        self.warm = self.failed = False

    async def lane(self, write: Write) -> None:
        """Score one sample after the other while there are any."""
        for place, sample in self.left:
            seconds, began = self.limits[self.warm], time.monotonic()
            scoring = asyncio.ensure_future(score_concurrently(self.terms, sample))
            try:
                await asyncio.wait({scoring}, timeout=seconds)
                if not scoring.done():  # the loop, or the machine, stood still for so long
                    await asyncio.wait({scoring}, timeout=max(0.0, time.monotonic() - began - seconds))
                if self.failed:
                    return
                if not scoring.done():
                    write(Late(place, seconds), look=True)
                    continue
                reward, components = scoring.result()
                report = report_sample(self.report, sample) if self.report else None
                done: Done = (place, reward, components, report)
                write(done)
                self.warm = True
            except InputError as error:
                self.failed = True
                write(Failed(str(error), place), look=True)
                return
            finally:
                scoring.cancel()  # nothing where it is done


async def score_batch(
    terms: Sequence[Term],
    report: Report | None,
    samples: Sequence[Sample],
    limits: tuple[float, float],
    concurrency: int,
    write: Write,
) -> bool:
    """Score a batch, ``concurrency`` samples at a time; False when one failed, which is said.

    ``limits``: seconds that a sample may take which begins before the first is done, and after that.
    """
    batch = _Batch(terms, report, samples, limits)
    await asyncio.gather(*(batch.lane(write) for _ in range(min(concurrency, len(samples)))))
    return not batch.failed
