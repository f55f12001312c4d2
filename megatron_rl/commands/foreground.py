"""What runs in the foreground of a command until a signal, or until it ends by itself, such as one SGLang server."""

import contextlib
import http.client
import signal
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

from megatron_rl.errors import InputError, Interrupted, RunError
from megatron_rl.rollout.sglang.servers.process import ServerProcess
from megatron_rl.system import scratch

_POLL = 0.5  # seconds
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open  # no proxy is to learn the key


def check_address(host: str, port: int) -> None:
    """Raises InputError unless a server can listen there."""
    if not 0 < port < 65536:
        raise InputError(f"--port {port} is no port: choose one of 1 to 65535.")
    try:
        family, kind, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError):
        raise InputError(f"--host {host!r} is no address: write one of this machine's, or 0.0.0.0 for all.") from None
    with socket.socket(family, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(place)
        except OSError as error:
            raise InputError(
                f"No server can listen at {host}, port {port} ({error.strerror}): choose another --port, or a --host "
                "of this machine's."
            ) from None


def address(host: str, port: int) -> str:
    """The URL of a server that listens there."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def run_server(chosen: Mapping[str, Any], env: Mapping[str, str], key: str, said: str, seconds: float) -> int:
    """Start it with these options (SGLang's own names), print ``said`` when it answers, and wait for a signal.

    Returns the command's exit code, 128 + signal. Raises InputError for an address that cannot be had, and RunError
    with its last words when it ends by itself or is not ready after ``seconds``.
    """
    host, port = chosen["host"], chosen["port"]
    check_address(host, port)
    url, deadline = address(host, port), time.monotonic() + seconds
    with scratch.made() as folder, stopped() as stop:
        server = ServerProcess("serve", chosen, env, folder, folder / "server.log")
        print(f"Starting SGLang with {chosen['model-path']} …", flush=True)
        server.start()
        try:
            # Whoever else has taken the port meanwhile must neither be taken for the server nor get its key.
            while not stop.is_set() and not (server.listens(port) and _ready(url, key)):
                if server.ended:
                    raise RunError(f"SGLang ended before it was ready. It said:{server.last_words()}")
                if time.monotonic() > deadline:
                    raise RunError(f"SGLang was not ready in {seconds:.0f} s. It said:{server.last_words()}")
                stop.wait(_POLL)
            if not stop.is_set():
                print(said, flush=True)
            while not stop.is_set():
                if server.ended:
                    raise RunError(f"SGLang ended. It said:{server.last_words()}")
                stop.wait(_POLL)
        finally:
            server.kill(gently=True)
    return 128 + stop.signal


def _ready(url: str, key: str) -> bool:
    request = urllib.request.Request(f"{url}/v1/models", headers={"Authorization": f"Bearer {key}"})
    try:
        with _open(request, timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, http.client.HTTPException):
        return False


class _Stop(threading.Event):
    signal = 0  # that set it


@contextlib.contextmanager
def stopped() -> Iterator[_Stop]:
    """An event that SIGINT, SIGTERM and SIGHUP set."""
    event = _Stop()

    def stop(number: int, _: FrameType | None) -> None:
        event.signal = number
        event.set()

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield event
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def interruptible(said: str) -> Iterator[None]:
    """SIGTERM and SIGHUP end what is inside as Ctrl-C does, a second one at once. Raises Interrupted with ``said``."""
    number: int = signal.SIGINT

    def stop(received: int, _: FrameType | None) -> None:
        nonlocal number
        number = received
        for each in previous:
            signal.signal(each, signal.SIG_DFL)
        raise KeyboardInterrupt

    heard = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]  # nohup ignores one
    previous = {each: signal.getsignal(each) for each in heard}
    try:
        for each in heard:
            signal.signal(each, stop)
        yield
    except KeyboardInterrupt:
        raise Interrupted(said, number) from None
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)
