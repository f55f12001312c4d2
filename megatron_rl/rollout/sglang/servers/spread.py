"""A server whose workers are on several machines: its processes there as one. Imports no torch."""

import contextlib
from collections.abc import Sequence

from megatron_rl.rollout.sglang.servers.keeper import FarServer
from megatron_rl.rollout.sglang.servers.process import ServerProcess
from megatron_rl.system.control import WorkerError


class SpreadServer:
    """Has a ``ServerProcess``'s methods. The first part answers requests; when one has ended, all have."""

    def __init__(self, parts: Sequence[ServerProcess | FarServer]) -> None:
        self.parts = parts

    @property
    def places(self) -> tuple[str, ...]:
        """``machine.place()`` of each part."""
        return tuple(place for part in self.parts for place in part.places)

    @property
    def pid(self) -> int:
        return self.parts[0].pid

    @property
    def lost(self) -> str:
        """Why it cannot be started again: one of its machines is lost; empty when it can."""
        return next((part.lost for part in self.parts if part.lost), "")

    @property
    def started(self) -> bool:
        return all(part.started for part in self.parts)

    @property
    def ended(self) -> bool:
        return any(part.ended for part in self.parts)

    def start(self) -> None:
        for part in self.parts:
            part.start()

    def note_parts(self) -> None:
        for part in self.parts:
            part.note_parts()

    def last_words(self) -> str:
        """Of the parts that have ended, or of all."""
        ended = [part for part in self.parts if part.ended] or self.parts
        numbers = [self.parts.index(part) for part in ended]
        return "".join(f"\n {n}:{part.last_words()}" for n, part in zip(numbers, ended, strict=True))

    def kill(self, gently: bool = False) -> None:
        """End it on every machine that is still there; the first part tells the others, where that is gently."""
        for part in self.parts:
            with contextlib.suppress(WorkerError):  # its machine is lost, and that part with it
                part.kill(gently and part is self.parts[0])
