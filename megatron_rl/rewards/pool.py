"""Scoring in processes: rewards are anyone's code, and may be slow, hang or crash without harming the trainer."""

import selectors
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from megatron_rl.errors import InputError
from megatron_rl.rewards.config import RewardsConfig
from megatron_rl.rewards.process import WorkerProcess
from megatron_rl.rewards.registry import check_rewards
from megatron_rl.rewards.sample import Sample
from megatron_rl.rewards.terms import RewardError
from megatron_rl.rewards.worker import BEGUN, READY

LOOKS = 20  # at what the workers have written, per deadline: a sample is killed at most 5 % late
FRUITLESS_ENDS = 3  # workers that may end in a row before they have begun a batch
EXCERPT = 300  # characters of a prompt and a response in an error


@dataclass(frozen=True)
class Scored:
    """One scored sample. Without a score (``timed_out`` or ``crashed``) the reward is ``rewards.deadline_score``."""

    reward: float
    components: dict[str, float] = field(default_factory=dict)  # "term/component", before the weights
    timed_out: bool = False  # it ran past rewards.deadline
    crashed: bool = False  # its worker ended while it ran
    report: dict[str, float] | None = None


class RewardPool:
    """Worker processes that are started once and replaced when they end or have to be killed.

    Every sample is scored once; only the one that hung or crashed goes without a score. A reward that
    raises, or returns something else than finite numbers, ends the run with a ``RewardError``; after an
    exception the pool is closed.
    """

    def __init__(self, config: RewardsConfig) -> None:
        if violations := check_rewards(config):
            raise InputError(" ".join(violations))
        self.config = config
        self._counts = {"timeouts": 0, "crashes": 0, "restarts": 0}
        self._fruitless = 0
        self._queue: deque[list[int]] = deque()  # sample numbers
        self._samples: Sequence[Sample] = ()
        self._scored: dict[int, Scored] = {}
        self._selector = selectors.DefaultSelector()
        self._workers: list[WorkerProcess] = []
        try:
            for _ in range(config.workers):
                self._start()
            while not all(worker.ready for worker in self._workers):
                self._advance()
        except BaseException:
            self.close()
            raise

    def score(self, samples: Sequence[Sample]) -> list[Scored]:
        """Score the samples, in their order; ``RewardError`` when a reward fails."""
        if not self._workers:
            raise RuntimeError("the reward pool is closed")
        self._samples, self._scored = samples, {}
        self._enqueue(range(len(samples)))
        try:
            while len(self._scored) < len(samples):
                self._dispatch()
                self._advance()
        except BaseException:  # Ctrl-C too: workers are in the middle of a batch that nobody will collect
            self.close()
            raise
        return [self._scored[number] for number in range(len(samples))]

    def metrics(self) -> dict[str, float]:
        """Counts since the start: samples timed out and crashed, workers replaced."""
        return {name: float(count) for name, count in self._counts.items()}

    def close(self) -> None:
        """End the workers, and whatever they had started. Closing twice does nothing."""
        for worker in self._workers:
            worker.end()
        self._workers.clear()
        self._selector.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        worker = WorkerProcess(self.config)
        self._workers.append(worker)
        self._selector.register(worker, selectors.EVENT_READ)

    def _dispatch(self) -> None:
        for worker in self._workers:
            if self._queue and worker.ready and not worker.waiting and not worker.ended:
                numbers = self._queue.popleft()
                worker.give(numbers, [self._samples[number] for number in numbers])

    def _advance(self) -> None:
        """Wait until a worker has finished its batch or may be overdue; replace those that ended or are."""
        deadline = self.config.deadline
        patience = min(worker.allowance(deadline) for worker in self._workers)
        self._selector.select(max(0.0, min(patience, deadline / LOOKS)))
        for worker in list(self._workers):
            self._collect(worker)
            if worker.ended:
                self._replace(worker, "crashed")
            elif worker.allowance(deadline) <= 0:
                worker.kill()
                advanced = self._collect(worker)  # it may have finished that sample just now
                self._replace(worker, "" if advanced else "timed_out")

    def _collect(self, worker: WorkerProcess) -> bool:
        """Take what a worker has written; whether there was anything."""
        messages = worker.receive()
        for message in messages:
            if message == READY:
                worker.ready = True
            elif message == BEGUN:
                worker.begun, self._fruitless = True, 0
            elif isinstance(message, str):
                raise RewardError(self._describe(worker, message))
            else:
                self._scored[worker.waiting.pop(0)] = Scored(*message)
        return bool(messages)

    def _replace(self, worker: WorkerProcess, failure: str) -> None:
        """Start a worker in the place of one that ended; ``failure`` is what became of the sample it was scoring."""
        self._selector.unregister(worker)
        self._workers.remove(worker)
        worker.end()
        if failure and worker.begun and worker.waiting:
            timed_out = failure == "timed_out"
            self._counts["timeouts" if timed_out else "crashes"] += 1
            self._scored[worker.waiting.pop(0)] = Scored(
                self.config.deadline_score, timed_out=timed_out, crashed=not timed_out
            )
        elif not worker.ready or (worker.waiting and not worker.begun):
            self._fruitless += 1
            if self._fruitless == FRUITLESS_ENDS:
                raise RewardError(
                    f"{FRUITLESS_ENDS} reward workers in a row ended before they scored anything, the last with exit "
                    f"code {worker.process.returncode} (negative: the signal that ended it). Import the modules of "
                    f"rewards.terms ({', '.join(self.config.terms)}) in a Python of their own to see why."
                )
        self._enqueue(worker.waiting)
        self._counts["restarts"] += 1
        self._start()

    def _enqueue(self, numbers: Sequence[int]) -> None:
        """Cut samples into batches, at least one for every worker where there are enough."""
        size = max(1, min(self.config.batch_size, -(-len(numbers) // self.config.workers)))
        self._queue.extend(list(numbers[i : i + size]) for i in range(0, len(numbers), size))

    def _describe(self, worker: WorkerProcess, message: str) -> str:
        """A worker's error, with the sample that it was scoring."""
        if not (worker.begun and worker.waiting):
            return message
        sample = self._samples[worker.waiting[0]]
        return (
            f"{message}The sample was number {worker.waiting[0]} of {len(self._samples)}, with prompt "
            f"{sample.prompt[-EXCERPT:]!r}, response {sample.response[:EXCERPT]!r} and answer {sample.answer!r}."
        )
