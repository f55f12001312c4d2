"""One SGLang server in the foreground of a command: until Ctrl-C, or until it ends by itself."""

import contextlib
import signal
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from megatron_rl.errors import InputError
from megatron_rl.rollout.sglang.process import ServerProcess

_POLL = 0.5  # seconds


def run_server(chosen: Mapping[str, Any], env: Mapping[str, str], key: str, said: str) -> None:
    """Start it with these options (SGLang's own names), print ``said`` when it answers, and wait.

    Raises InputError with its last words when it ends by itself.
    """
    url = f"http://{chosen['host']}:{chosen['port']}"
    with tempfile.TemporaryDirectory(prefix="mrl-") as scratch, _stopped() as stop:
        server = ServerProcess("serve", chosen, env, Path(scratch), Path(scratch) / "server.log")
        print(f"Starting SGLang with {chosen['model-path']} …", flush=True)
        server.start()
        try:
            while not stop.is_set() and not _ready(url, key):
                if server.ended:
                    raise InputError(f"SGLang ended before it was ready. It said:{server.last_words()}")
                stop.wait(_POLL)
            if not stop.is_set():
                print(said, flush=True)
            while not stop.is_set():
                if server.ended:
                    raise InputError(f"SGLang ended. It said:{server.last_words()}")
                stop.wait(_POLL)
        finally:
            server.kill(gently=True)


def _ready(url: str, key: str) -> bool:
    request = urllib.request.Request(f"{url}/v1/models", headers={"Authorization": f"Bearer {key}"})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


@contextlib.contextmanager
def _stopped() -> Iterator[threading.Event]:
    """An event that SIGINT, SIGTERM and SIGHUP set."""
    event = threading.Event()

    def stop(_: int, __: FrameType | None) -> None:
        event.set()

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield event
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
