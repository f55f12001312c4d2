"""A trainer rank's part in swaps over the network: it joins groups and sends when rank 0 says so.

An engine may need the weights at any time at which they hold still, not at swaps only: it is filled anew after a
restart. So a rank has a thread for each engine that it sends to (``nearest.readers``), which calls rank 0
(``system.control``) and does what it asks.
"""

import atexit
import os
import socket
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from multiprocessing.connection import Connection

import torch

from megatron_rl.resharding.layout import Layout
from megatron_rl.resharding.nearest import read_by
from megatron_rl.resharding.plan import Plan, make_plan
from megatron_rl.resharding.transports.meeting import Meeting
from megatron_rl.resharding.transports.point_to_point import PointToPointSource
from megatron_rl.system.channel import key_from_environment
from megatron_rl.system.control import answer_calls, call_in

METHODS = ("plan", "connect", "push")
_END_SECONDS = 5.0


class Sender:
    """The thread for one engine. ``parameters`` (contiguous, by local name): rank ``rank``'s, as ``layout`` says."""

    def __init__(self, layout: Layout, rank: int, parameters: Mapping[str, torch.Tensor], dtype: torch.dtype) -> None:
        self.layout, self.rank, self.parameters, self.dtype = layout, rank, parameters, dtype
        self._device = next(iter(parameters.values())).device
        # Of its own on a GPU: on the one that training uses it would wait for ranks that wait for it.
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        self._plan: Plan | None = None
        self._dtypes: dict[str, torch.dtype] = {}
        self._end: PointToPointSource | None = None

    def start(self, control: str, session: str) -> None:
        """Call rank 0 at ``control``, and obey until it hangs up."""
        connection = call_in(control, key_from_environment(), session, self.rank)
        thread = threading.Thread(target=self._obey, args=(connection,), name=f"sender-{session}", daemon=True)
        thread.start()
        atexit.register(_end, connection, thread)

    def plan(self, destination: Layout, dtypes: Mapping[str, str], readers: tuple[int, ...]) -> tuple[str, bool]:
        """Plan the way to the engine's workers, and let go of earlier ones.

        Returns the plan's hash, and whether this rank has anything to send where ``readers`` share that.
        """
        self._leave()
        plan = make_plan(self.layout, destination)
        self._plan = read_by(plan, self.layout, readers)
        self._dtypes = held_dtypes(plan, dtypes, self.dtype)
        return plan.hash, bool(self._plan.copies_from(self.rank))

    def connect(self, meeting: Meeting) -> None:
        """Join the workers in a group."""
        if self._plan is None:
            raise RuntimeError("the rank has no plan for the engine")
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # this thread's
        self._leave()
        ends = meeting.join_as_source(self.rank)
        with self._on_stream():
            self._end = PointToPointSource(self._plan, self.rank, self.parameters, self._dtypes, ends)

    def push(self, version: int) -> None:
        """Send what this rank owns; returns when it has arrived."""
        if self._end is None:
            raise RuntimeError("the rank is not connected to the engine")
        with self._on_stream():
            self._end.push(version)

    def _on_stream(self) -> AbstractContextManager[None]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _obey(self, connection: Connection) -> None:
        answer_calls(connection, self, METHODS)
        self._leave()

    def _leave(self) -> None:
        if self._end is not None:
            self._end.close()
            self._end = None


def _end(connection: Connection, thread: threading.Thread) -> None:
    """Hang up, and wait for the thread: the interpreter's end must not find it inside of torch."""
    with suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as line:
        line.shutdown(socket.SHUT_RDWR)
    thread.join(_END_SECONDS)


def held_dtypes(plan: Plan, dtypes: Mapping[str, str], default: torch.dtype) -> dict[str, torch.dtype]:
    """The dtype of each destination tensor of a plan; ``dtypes`` as in ``protocol.Attached``."""
    wanted = {c.destination for c in plan.copies}
    return {local: getattr(torch, dtypes[local]) if local in dtypes else default for local in wanted}
