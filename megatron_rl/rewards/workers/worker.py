"""A reward worker, a child process of ``RewardPool``.

``python -m megatron_rl.rewards.workers.worker CHANNEL RESULTS PARENT``:
``CHANNEL`` and ``RESULTS`` are inherited descriptors: a stream socket and a pipe's end for writing. In come
pickles through the channel: a ``RewardsConfig`` with the task's report or None, then batches: whether rewards are
wanted, and a list of ``Sample``. Out go length-prefixed pickles through the pipe: ``READY``; for every batch
``BEGUN`` and, as soon as a sample is done, its reward, components and report; or a text, an error that ends the
run. So the pool can see which sample is running and loses no score when it kills the worker. It need not be woken
for each: a byte through the channel says when to look.

Whatever a reward prints goes to the pool's standard error: nobody's output is read from there.
"""

import os
import pickle
import signal
import socket
import struct
import sys
import traceback

from megatron_rl.errors import InputError
from megatron_rl.rewards.workers.terms import bind, report_sample, score_sample
from megatron_rl.system.processes import die_with_parent

READY, BEGUN = 0, 1
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
    """Score until the pool closes the channel."""
    outgoing = Outgoing(channel, results)
    with channel.makefile("rb") as incoming:
        try:
            config, report = pickle.load(incoming)
            terms = bind(config)
            outgoing.write(READY, look=True)
            while incoming.peek(1):
                rewarded, samples = pickle.load(incoming)
                outgoing.write(BEGUN)
                for sample in samples:
                    reward, components = score_sample(terms, sample) if rewarded else (0.0, {})
                    outgoing.write((reward, components, report_sample(report, sample) if report else None))
                outgoing.look()
        except InputError as error:
            outgoing.write(str(error), look=True)
        except Exception:
            outgoing.write(f"A reward worker failed:\n{traceback.format_exc()}", look=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends its workers
    descriptor, results, parent = map(int, sys.argv[1:])
    die_with_parent(parent)
    for inherited in (descriptor, results):
        os.set_inheritable(inherited, False)  # programs that a reward starts must not hold the channel open
    channel = socket.socket(fileno=descriptor)  # open until the process ends: the pool waits for that
    main(channel, results)
