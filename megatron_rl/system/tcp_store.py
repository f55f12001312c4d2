"""A torch store that listens at one address: torch's own listen on every interface, and ask nobody who they are."""

import socket
from datetime import timedelta

import torch.distributed as dist


def listening_store(host: str, port: int = 0, seconds: float = 300.0) -> dist.TCPStore:
    """A store at this machine's address ``host``; its ``port`` is a free one when none is given.

    Raises OSError for an address that cannot be had.
    """
    listener = socket.create_server((host, port))
    return dist.TCPStore(
        host,
        listener.getsockname()[1],
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=seconds),
        master_listen_fd=listener.detach(),
    )
