"""The embedded engine: a process that holds transformers' modules, receives weights and generates.

    MEGATRON_RL_KEY=HEX python -m megatron_rl.rollout.embedded.process --model FOLDER --address HOST:PORT|SOCKET

It serves one client and then listens no more. The weights are not loaded from the folder, unless ``--load`` asks for
it: until a swap has been verified, and after one that failed until the next that succeeds, the engine is poisoned and
refuses to generate.
"""

import argparse
import os
import signal
import socket
import sys
import time
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_rl.errors import InputError
from megatron_rl.system import channel
from megatron_rl.system.channel import METHODS, PROGRESS, key_from_environment, parse_address
from megatron_rl.system.control import answer
from megatron_rl.system.processes import die_with_parent, run
from megatron_rl.system.stop import leave_to_parent

if TYPE_CHECKING:
    from megatron_rl.rollout.embedded.model import TransformersEngine

DTYPES = ("float32", "bfloat16")
LINGER = 30.0  # seconds between the client's end and ours: a supervisor ends its services itself
SAY_EVERY = 1.0  # seconds between two words on how far a generation is


def listen(text: str, key: bytes) -> Listener:
    """A listener at the address. Raises ``InputError`` when another process has it."""
    address = parse_address(text)
    if isinstance(address, str) and Path(address).is_socket() and not _answers(address):
        os.unlink(address)  # left by a process that was killed
    try:
        return channel.listen(text, key=key)
    except OSError as error:
        raise InputError(f"the rollout engine cannot listen at {text}: {error.strerror}. Choose another.") from error


def accept(listener: Listener) -> Connection:
    """The first client that knows the key."""
    while True:
        try:
            return listener.accept()
        except (AuthenticationError, EOFError, ConnectionError) as error:
            print(f"a connection was refused: {error}", file=sys.stderr, flush=True)


def serve(engine: "TransformersEngine", client: Connection) -> bool:
    """Answer the client until it stops the engine (True) or is gone (False)."""
    said = 0.0

    def say(done: int, asked: int) -> None:
        nonlocal said
        if time.monotonic() - said >= SAY_EVERY:
            said = time.monotonic()
            client.send((PROGRESS, (done, asked)))

    engine.say = say
    while True:
        try:
            method, arguments = client.recv()
            said = 0.0
            client.send(answer(engine, METHODS, method, arguments))
            if method == "stop":
                return True
        except (EOFError, ConnectionError):
            return False


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(path) == 0


def main() -> None:
    """Run the engine until its client stops it, or until the client or the parent process ends."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's: it ends the trainer first
    parser = argparse.ArgumentParser(prog="python -m megatron_rl.rollout.embedded.process", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder; config.json is read")
    parser.add_argument("--address", required=True, help="host:port, or the path of a Unix socket")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the weights and the cache")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--max-running", type=int, default=256, help="sequences decoded at the same time")
    parser.add_argument("--true-on-policy", action="store_true", help="sums in float64, as the actor will have them")
    parser.add_argument("--load", action="store_true", help="serve the folder's own weights: there is no trainer")
    options = parser.parse_args()
    with listen(options.address, key_from_environment()) as listener:
        # Importing torch and transformers takes seconds: first be tied to the parent and have the address.
        import torch

        from megatron_rl.rollout.embedded.model import TransformersEngine

        torch.set_num_threads(options.threads)
        dtype = getattr(torch, options.dtype)
        engine = TransformersEngine(options.model, dtype, options.max_running, options.true_on_policy)
        if options.load:
            engine.load(options.model)
        client = accept(listener)
        leave_to_parent()  # a batch system's SIGTERM goes to every process: the client finishes its step first
    with client:
        stopped = serve(engine, client)
    if not stopped:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(LINGER)


if __name__ == "__main__":
    run(main)
