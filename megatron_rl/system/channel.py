"""How processes of a run find and trust each other: addresses, the run's key, connections. Imports no torch."""

import hashlib
import os
import socket
from multiprocessing.connection import Client, Connection, Listener, answer_challenge, deliver_challenge

from megatron_rl.errors import InputError

ENGINES = "MEGATRON_RL_ENGINES"  # environment variable: the addresses of the run's engines, comma-separated
KEY = "MEGATRON_RL_KEY"  # environment variable: the run's key in hexadecimal
PROGRESS = "progress"  # what an engine says while it generates: (PROGRESS, (done, asked for))
LISTENER = "MEGATRON_RL_LISTENER"  # environment variable: descriptor of the socket at which rank 0 meets the others
METHODS = (
    "place",
    "attach",
    "begin_swap",
    "finish_swap",
    "generate",
    "score",
    "health",
    "stop",
)  # what a client may call
_LONGEST_PATH = 107  # bytes in sockaddr_un.sun_path, less the terminating zero


def parse_address(text: str) -> str | tuple[str, int]:
    """ "host:port" ("[host]:port" for IPv6) or the path of a Unix socket.

    Raises ``InputError`` for a path that is too long for the kernel or a port that is no number.
    """
    host, colon, port = text.rpartition(":")
    if "/" not in text and colon:
        if not port.isdecimal() or not 0 < int(port) < 65536:
            raise InputError(f"address {text}: {port!r} is no port; write host:port with a port of 1 to 65535.")
        return host.strip("[]"), int(port)
    if len(os.fsencode(text)) > _LONGEST_PATH:
        raise InputError(f"the socket path {text} is longer than {_LONGEST_PATH} bytes: choose a shorter folder.")
    return text


def written(host: str, port: int) -> str:
    """The text that ``parse_address`` reads."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def listen(text: str, backlog: int = 1, key: bytes | None = None) -> Listener:
    """A listener at an address; with a ``key`` it accepts only who knows it. Raises OSError where it cannot be had."""
    address = parse_address(text)
    if isinstance(address, str):
        return Listener(address, backlog=backlog, authkey=key)
    family = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0][0]
    return Listener(address, family.name, backlog, key)


def dial(text: str, key: bytes, seconds: float | None = None) -> Connection:
    """A connection to whoever listens at an address and knows the key. Raises OSError or AuthenticationError.

    ``seconds``: in which a host has to answer. A host that vanishes without a word is noticed in two minutes at most.
    """
    address = parse_address(text)
    if isinstance(address, str):
        return Client(address, authkey=key)
    line = socket.create_connection(address, seconds)
    line.settimeout(None)
    notice_absence(line)
    connection: Connection = Connection(line.detach())
    try:
        answer_challenge(connection, key)
        deliver_challenge(connection, key)
    except BaseException:
        connection.close()
        raise
    return connection


def notice_absence(line: socket.socket) -> None:
    """Have the system ask over a silent TCP connection whether the other host is still there, and end it if not."""
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 120_000)  # milliseconds, for what was sent


def key_from_environment() -> bytes:
    """The run's key. Raises ``InputError`` when the variable is missing or is not hexadecimal."""
    text = os.environ.get(KEY, "")
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if not key:
        raise InputError(f"the environment variable {KEY} must hold the run's key, in hexadecimal digits.")
    return key


def api_key(key: bytes) -> str:
    """The servers' API key of a run. It opens HTTP alone, and does not tell the run's key, which opens more."""
    return hashlib.blake2b(key, person=b"sglang-api-key", digest_size=16).hexdigest()
