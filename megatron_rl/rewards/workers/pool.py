"""Scoring in processes: rewards are anyone's code, and may be slow, hang or crash without harming the trainer."""

import selectors
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Self

from megatron_rl.data.task import Report, Sample
from megatron_rl.errors import InputError
from megatron_rl.rewards.config import RewardsConfig
from megatron_rl.rewards.registry import check_report, check_rewards
from megatron_rl.rewards.workers.messages import BEGUN, READY, Failed, Late
from megatron_rl.rewards.workers.process import WorkerProcess
from megatron_rl.rewards.workers.terms import RewardError, bind

LOOKS = 20  # at what the workers have written, per deadline: a sample is killed at most 5 % late
LONGEST_LOOK = 0.5  # seconds between two, at most: the pool may be closed meanwhile
FRUITLESS_ENDS = 3  # workers that may end in a row before they have begun a batch
FIRST_SLACK = 4  # times the longest first sample of a worker so far, on top of the deadline, for those to come
HOPELESS = 16  # samples that may fail before the first succeeds: a whole step of them could take hours
EXCERPT = 300  # characters of a prompt and a response in an error


@dataclass(frozen=True)
class Scored:
    """One scored sample. Without a score (``timed_out`` or ``crashed``) the reward is ``rewards.deadline_score``."""

    reward: float
    components: dict[str, float] = field(default_factory=dict)  # "term/component", before the weights
    report: dict[str, float] | None = None  # the task's; None without a score or where the pool has no report
    timed_out: bool = False  # it ran past its deadline
    crashed: bool = False  # its worker ended while it ran
    failure: str = ""  # why it has no score
    step: int = field(default=0, compare=False)  # of RL, for which it was scored: what its weights were


class RewardPool:
    """Worker processes that are started once and replaced when they end or have to be killed.

    Every sample is scored once; only the one that hung or crashed goes without a score, which is said on the console.
    Where a worker ends that had several under way, of asynchronous rewards, each of those is tried again by itself.
    A reward that raises, or returns something else than finite numbers, ends the run with a ``RewardError``, and so
    does a call in which no sample gets a score; after an exception the pool is closed.

    Its methods may be called from any thread; one call is served after the other.
    """

    def __init__(self, config: RewardsConfig, report: Report | None = None) -> None:
        rewards = check_rewards(config) if config.terms or report is None else []  # none: it judges only
        if violations := rewards + (check_report(report) if report else []):
            raise InputError(" ".join(violations))
        self.config, self.report = config, report
        self._lock = threading.RLock()  # a call that fails closes the pool
        self._closing = False
        self._error: BaseException | None = None  # what closed it
        self._fruitless = 0
        self._concurrent = any(term.asynchronous for term in bind(config))
        self._queue: deque[list[int]] = deque()  # sample numbers
        self._samples: Sequence[Sample] = ()
        self._rewarded = True
        self._scored: dict[int, Scored] = {}
        self._longest: dict[bool, float] = {}  # seconds of a worker's first sample, with rewards and without
        self._selector = selectors.DefaultSelector()
        self._workers: list[WorkerProcess] = []
        # Workers die with the thread that starts them, and a caller's may end before the pool does.
        self._starter = ThreadPoolExecutor(1, "reward workers")
        try:
            for _ in range(config.workers):
                self._start()
            while not all(worker.ready for worker in self._workers):
                self._advance()
        except BaseException:
            self.close()
            raise

    def score(self, samples: Sequence[Sample]) -> list[Scored]:
        """Reward and report of the samples, in their order; ``RewardError`` when one fails or none succeeds."""
        with self._lock:
            return self._work(samples, rewarded=True)

    def judge(self, samples: Sequence[Sample]) -> list[dict[str, float] | None]:
        """The task's report of the samples, in their order, without rewards; None where a worker hung or crashed.

        ``RewardError`` as for ``score``.
        """
        if self.report is None:
            raise RuntimeError("the reward pool was made without a report")
        with self._lock:
            return [scored.report for scored in self._work(samples, rewarded=False)]

    def close(self) -> None:
        """End the workers, and whatever they had started, and the call under way. Closing twice does nothing."""
        self._closing = True
        with self._lock:
            for worker in self._workers:
                worker.end()
            self._workers.clear()
            self._selector.close()
            self._starter.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _work(self, samples: Sequence[Sample], rewarded: bool) -> list[Scored]:
        if self._closing:
            if isinstance(self._error, RewardError):  # in another thread, which may not have been asked for it yet
                raise self._error
            raise RuntimeError("the reward pool is closed")
        self._samples, self._rewarded, self._scored = samples, rewarded, {}
        self._enqueue(range(len(samples)))
        try:
            while len(self._scored) < len(samples):
                if self._closing:
                    raise RuntimeError("the reward pool was closed by another thread")
                self._dispatch()
                self._advance()
            self._warn()
        except BaseException as error:  # Ctrl-C too: workers are in the middle of a batch that nobody will collect
            self._error = error
            self.close()
            raise
        return [self._scored[number] for number in range(len(samples))]

    def _start(self) -> None:
        worker = self._starter.submit(WorkerProcess, self.config, self.report).result()
        self._workers.append(worker)
        self._selector.register(worker, selectors.EVENT_READ)

    def _dispatch(self) -> None:
        for worker in self._workers:
            if self._queue and worker.ready and not worker.waiting and not worker.ended:
                numbers = self._queue.popleft()
                batch = [self._samples[number] for number in numbers]
                concurrency = self.config.concurrency if self._rewarded and self._concurrent else 0
                worker.give(numbers, batch, self._rewarded, self._first_deadline(), concurrency)

    def _first_deadline(self) -> float:
        """Seconds for the first sample of a worker: once one is known, those that replace hanging ones need no more."""
        if (longest := self._longest.get(self._rewarded)) is None:
            return self.config.first_deadline
        return min(self.config.first_deadline, self.config.deadline + FIRST_SLACK * longest)

    def _advance(self) -> None:
        """Wait until a worker has finished its batch or may be overdue; replace those that ended or are."""
        patience = min(worker.allowance() for worker in self._workers)
        patience, began = max(0.0, min(patience, self.config.deadline / LOOKS, LONGEST_LOOK)), time.monotonic()
        self._selector.select(patience)
        # A machine that stood still, or has no core for this process, has none for its workers: that is not theirs.
        stalled = max(0.0, time.monotonic() - began - patience)
        for worker in list(self._workers):
            worker.since += stalled
            self._collect(worker)
            if worker.ended:
                self._replace(worker, timed_out=False)
            elif worker.allowance() <= 0:
                worker.kill()
                advanced = self._collect(worker)  # it may have finished that sample just now
                self._replace(worker, timed_out=True, lost=not advanced)

    def _collect(self, worker: WorkerProcess) -> bool:
        """Take what a worker has written; whether there was anything."""
        messages = worker.receive()
        for message in messages:
            if message == READY:
                worker.ready = True
            elif message == BEGUN:
                worker.begun, self._fruitless = True, 0
            elif isinstance(message, Failed):
                about = None if message.place is None else worker.numbers[message.place]
                raise RewardError(message.said, "" if about is None else self._sample(about))
            elif isinstance(message, Late):
                number = worker.take(message.place)
                self._lose(number, f"ran past {worker.limit(message.seconds)}", timed_out=True)
            else:
                place, reward, components, report = message
                number, first = worker.done(place)
                self._scored[number] = Scored(reward, components, report, step=self._samples[number].step)
                if first is not None:
                    self._longest[self._rewarded] = max(first, self._longest.get(self._rewarded, 0.0))
        return bool(messages)

    def _replace(self, worker: WorkerProcess, timed_out: bool, lost: bool = True) -> None:
        """Start a worker in the place of one that ended; ``lost``: and with it the sample that it had begun."""
        self._selector.unregister(worker)
        self._workers.remove(worker)
        _, limit = worker.deadline()
        worker.end()
        how = f"ran past {limit}" if timed_out else f"ended the worker ({_end(worker)})"
        suspects = worker.under_way() if lost else []
        if len(suspects) > 1:  # any of them may have done it
            worker.waiting = worker.waiting[len(suspects) :]
            self._queue.extend([number] for number in suspects)
        elif suspects:
            self._lose(worker.waiting.pop(0), how, timed_out)
        elif not worker.ready or (worker.waiting and not worker.begun):
            self._fruitless += 1
            if self._fruitless == FRUITLESS_ENDS:
                how = f"ran past {limit}" if timed_out else f"with {_end(worker)}"
                raise RewardError(
                    f"{FRUITLESS_ENDS} reward workers in a row ended before they scored anything, the last {how}. "
                    f"Import the modules of rewards.terms ({', '.join(self.config.terms)}) in a Python of their own "
                    "to see why."
                )
        self._enqueue(worker.waiting)
        self._start()

    def _lose(self, number: int, how: str, timed_out: bool) -> None:
        """A sample goes without a score."""
        self._scored[number] = Scored(
            self.config.deadline_score,
            timed_out=timed_out,
            crashed=not timed_out,
            failure=how,
            step=self._samples[number].step,
        )
        self._refuse_hopeless()

    def _enqueue(self, numbers: Sequence[int]) -> None:
        """Cut samples into batches, at least one for every worker where there are enough.

        Where many are under way at once, no more than that: the last of a batch leaves lanes empty.
        """
        size = max(1, -(-len(numbers) // self.config.workers))
        if not (self._rewarded and self._concurrent):
            size = min(size, self.config.batch_size)
        self._queue.extend(list(numbers[i : i + size]) for i in range(0, len(numbers), size))

    def _refuse_hopeless(self) -> None:
        """``RewardError`` when no sample has a score, and there are none left or enough to give up."""
        failed = len(self._scored)
        if failed < min(HOPELESS, len(self._samples)) or not all(s.failure for s in self._scored.values()):
            return
        got = f"of step {self._samples[0].step + 1} got a score" if self._rewarded else "got a report"
        first = "" if failed == len(self._samples) else f"of the first {failed}, "
        culprits = " and ".join(self.config.terms) if self._rewarded else "the task's report"
        raise RewardError(
            f"No completion {got}: {first}{self._failures()}. Look at {culprits}, or raise rewards.deadline or, for "
            "what is loaded at first use, rewards.first_deadline.",
            self._sample(next(iter(self._scored))),
        )

    def _warn(self) -> None:
        failed = sum(1 for scored in self._scored.values() if scored.failure)
        if failed:
            of = f"of {len(self._samples)} completions"
            if self._rewarded:
                said = f"step {self._samples[0].step + 1}: {failed} {of} have no score ({self._failures()})"
                said += f"; their reward is rewards.deadline_score={self.config.deadline_score:g}"
            else:
                said = f"evaluation: {failed} {of} have no report ({self._failures()}) and do not count"
            print(f"warning: {said}", flush=True)

    def _failures(self) -> str:
        """How many samples failed in which way."""
        counts = Counter(scored.failure for scored in self._scored.values() if scored.failure)
        return ", ".join(f"{count} {how}" for how, count in counts.most_common())

    def _sample(self, number: int) -> str:
        sample = self._samples[number]
        return (
            f"The sample was number {number} of {len(self._samples)}, with prompt {sample.prompt[-EXCERPT:]!r}, "
            f"response {sample.response[:EXCERPT]!r} and answer {repr(sample.answer)[:EXCERPT]}."
        )


def _end(worker: WorkerProcess) -> str:
    code = worker.process.returncode
    if code >= 0:
        return f"exit code {code}"
    if code == -signal.SIGKILL:
        return "SIGKILL: is the machine out of memory?"
    names = {number.value: number.name for number in signal.Signals}
    return names.get(-code, f"signal {-code}")
