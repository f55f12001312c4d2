"""A reward worker: ``python -m megatron_rl.rewards.worker CHANNEL RESULTS PARENT``, a child process of ``RewardPool``.

``CHANNEL`` and ``RESULTS`` are inherited descriptors: a stream socket and a pipe's end for writing. In come
pickles through the channel: a ``RewardsConfig``, then lists of ``Sample``. Out go length-prefixed pickles
through the pipe: ``READY``; for every list ``BEGUN`` and, as soon as a sample is scored, its reward and
components; or a text, an error that ends the run. So the pool can see which sample is running and loses no
score when it kills the worker. It need not be woken for each: a byte through the channel says when to look.
"""

import os
import pickle
import signal
import socket
import struct
import sys
import traceback

from megatron_rl.rewards.terms import RewardError, bind, score_sample
from megatron_rl.system.processes import die_with_parent

READY, BEGUN = 0, 1
LOOK = b"!"
PIPE_BYTES = 32_768  # half of what a pipe holds: when the pool is to read it before the batch is done
PREFIX = struct.Struct("<I")  # bytes of the pickle that follows


def main(channel: socket.socket, results: int) -> None:
    """Score until the pool closes the channel."""
    with channel.makefile("rb") as incoming:
        try:
            terms = bind(pickle.load(incoming))
            write(results, READY)
            channel.send(LOOK)
            while incoming.peek(1):
                samples = pickle.load(incoming)
                unseen = write(results, BEGUN)
                for sample in samples:
                    unseen += write(results, score_sample(terms, sample))
                    if unseen > PIPE_BYTES:
                        channel.send(LOOK)
                        unseen = 0
                channel.send(LOOK)
        except RewardError as error:
            write(results, str(error))
        except Exception:
            write(results, f"A reward worker failed:\n{traceback.format_exc()}")


def write(results: int, message: object) -> int:
    """One message to the pool; returns its bytes."""
    data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    data = PREFIX.pack(len(data)) + data
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(results, rest) :]
    return len(data)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends its workers
    descriptor, results, parent = map(int, sys.argv[1:])
    die_with_parent(parent)
    for inherited in (descriptor, results):
        os.set_inheritable(inherited, False)  # programs that a reward starts must not hold the channel open
    channel = socket.socket(fileno=descriptor)  # open until the process ends: the pool waits for that
    main(channel, results)
