"""A torch store that listens at one address: torch's own listen on every interface, and ask nobody who they are."""

import os
import socket
from datetime import timedelta

import torch.distributed as dist

from megatron_rl.system.channel import LISTENER


def listening_store(
    host: str, port: int = 0, seconds: float = 300.0, listener: socket.socket | None = None
) -> dist.TCPStore:
    """A store at this machine's address ``host``; its ``port`` is a free one when none is given.

    A ``listener`` that has the address already is taken over. Raises OSError for an address that cannot be had.
    """
    listener = listener or socket.create_server(
        (host, port), family=socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    )
    return dist.TCPStore(
        host,
        listener.getsockname()[1],
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=seconds),
        master_listen_fd=listener.detach(),
    )


def inherited_listener() -> socket.socket | None:
    """The socket that this process has been started with for the ranks to meet at, the first time; else None."""
    number = os.environ.pop(LISTENER, None)
    if number is None:
        return None
    os.set_inheritable(int(number), False)
    return socket.socket(fileno=int(number))
