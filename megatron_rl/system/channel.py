"""How a client and the embedded engine find and trust each other. Imports no torch."""

import hashlib
import os

from megatron_rl.errors import InputError

ENGINES = "MEGATRON_RL_ENGINES"  # environment variable: the addresses of the run's engines, comma-separated
KEY = "MEGATRON_RL_KEY"  # environment variable: the run's key in hexadecimal
PROGRESS = "progress"  # what an engine says while it generates: (PROGRESS, (done, asked for))
LISTENER = "MEGATRON_RL_LISTENER"  # environment variable: descriptor of the socket at which rank 0 meets the others
METHODS = (
    "reach",
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
    """ "host:port" or the path of a Unix socket, as ``multiprocessing.connection`` takes it.

    Raises ``InputError`` for a path that is too long for the kernel or a port that is no number.
    """
    host, colon, port = text.rpartition(":")
    if "/" not in text and colon:
        if not port.isdecimal() or not 0 < int(port) < 65536:
            raise InputError(f"address {text}: {port!r} is no port; write host:port with a port of 1 to 65535.")
        return host, int(port)
    if len(os.fsencode(text)) > _LONGEST_PATH:
        raise InputError(f"the socket path {text} is longer than {_LONGEST_PATH} bytes: choose a shorter folder.")
    return text


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
