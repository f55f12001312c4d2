"""A reward worker, a child process of ``RewardPool``.

``python -m megatron_rl.rewards.workers.worker CHANNEL RESULTS PARENT``:
``CHANNEL`` and ``RESULTS`` are inherited descriptors: a stream socket and a pipe's end for writing. In come
pickles through the channel: a ``RewardsConfig`` with the task's report or None, then batches: whether rewards are
wanted, a list of ``Sample``, and how many seconds one may take until the first is done. Out go length-prefixed
pickles through the pipe: ``READY``; for every batch ``BEGUN`` and, as soon as a sample is done, ``Done``; ``Late`` for
one whose coroutine was cancelled at its deadline; or ``Failed``, which ends the run. Samples begin in their order, one
after the other, or ``rewards.concurrency`` at a time where a reward is asynchronous: so the pool knows which are under
way and loses no score when it kills the worker. It need not be woken for each: a byte through the channel says when to
look.

Whatever a reward prints goes to the pool's standard error: nobody's output is read from there.
"""

import asyncio
import os
import pickle
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Sequence

from megatron_rl.data.task import Report, Sample
from megatron_rl.errors import InputError
from megatron_rl.rewards.workers.concurrent import score_batch
from megatron_rl.rewards.workers.messages import BEGUN, READY, Done, Failed
from megatron_rl.rewards.workers.terms import Term, bind, report_sample, score_sample
from megatron_rl.system.processes import die_with_parent
from megatron_rl.system.stop import leave_to_parent

LOOK = b"!"
PIPE_BYTES = 32_768  # half of what a pipe holds: when the pool is to read it before the batch is done
PREFIX = struct.Struct("<I")  # bytes of the pickle that follows


class Outgoing:
    """The worker's messages to the pool."""

    def __init__(self, channel: socket.socket, results: int) -> None:
        self.channel, self.results = channel, results
        self.process = os.getpid()
        self.unseen = 0  # bytes written since the pool was told to look

    def write(self, message: object, look: bool = False) -> None:
        """One message; ``look``: the pool is to read it at once."""
        if os.getpid() != self.process:  # a reward forked and returned twice: the copy has no say
            os._exit(0)
        data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        rest = memoryview(PREFIX.pack(len(data)) + data)
        while rest:
            if self.unseen + len(rest) > PIPE_BYTES:
                self.look()
            written = os.write(self.results, rest[:PIPE_BYTES])
            self.unseen += written
            rest = rest[written:]
        if look:
            self.look()

    def look(self) -> None:
        self.channel.send(LOOK)
        self.unseen = 0


def main(channel: socket.socket, results: int) -> None:
    """Score until the pool closes the channel, or something fails."""
    outgoing = Outgoing(channel, results)
    with channel.makefile("rb") as incoming, asyncio.Runner() as loop:  # one loop: connections outlive a batch
        try:
            config, report = pickle.load(incoming)
            terms = bind(config)
            concurrent = any(term.asynchronous for term in terms)
            outgoing.write(READY, look=True)
            going = True
            while going and incoming.peek(1):
                rewarded, samples, first = pickle.load(incoming)
                outgoing.write(BEGUN)
                if rewarded and concurrent:
                    limits = (first, config.deadline)
                    going = loop.run(score_batch(terms, report, samples, limits, config.concurrency, outgoing.write))
                else:
                    going = _score_in_turn(terms if rewarded else [], report, samples, outgoing)
                outgoing.look()
        except InputError as error:
            outgoing.write(Failed(str(error)), look=True)
        except Exception:
            outgoing.write(Failed(f"A reward worker failed:\n{traceback.format_exc()}"), look=True)


def _score_in_turn(terms: Sequence[Term], report: Report | None, samples: Sequence[Sample], out: Outgoing) -> bool:
    """Score one after the other; False when one failed, which is said."""
    for place, sample in enumerate(samples):
        try:
            reward, components = score_sample(terms, sample)
            done: Done = (place, reward, components, report_sample(report, sample) if report else None)
            out.write(done)
        except InputError as error:
            out.write(Failed(str(error), place))
            return False
    return True


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends its workers
    leave_to_parent()  # and so is a SIGTERM that a batch system sends to every process
    descriptor, results, parent = map(int, sys.argv[1:])
    die_with_parent(parent)
    for inherited in (descriptor, results):
        os.set_inheritable(inherited, False)  # programs that a reward starts must not hold the channel open
    channel = socket.socket(fileno=descriptor)  # open until the process ends: the pool waits for that
    main(channel, results)
