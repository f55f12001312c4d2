"""Weights between processes and machines, over torch.distributed's point-to-point messages (gloo, NCCL).

Every pair of ranks that the plan connects is a link. Its copies travel in the plan's order, in the destination's
dtype, cut into chunks that both ends derive from the plan: no sizes are sent. A chunk that is one run of bytes of a
tensor leaves from there, or arrives there; others are packed into and unpacked from one of two slots that each end has
for a link, and all slots of a rank fit its buffer. Up to eight chunks of a link are on their way while one is packed or
unpacked and hashed. They are asked for several at a time, as gloo makes wait who asks while it reads.

A swap: (1) every source greets its destinations with version, plan and chunk schedule, and every destination answers;
(2) chunks, in turn over the links, of which the destination hashes what landed; (3) every destination tells every
source that it has all: the weights may change. Waiting in the same turn at both ends cannot deadlock: chunk n waits for
nothing but chunks before n. A source hashes nothing here: owners do so once for all their engines, before these stand
still (``transport.HeldStill``), and what landed is compared with that.

Every wait ends at the swap's deadline. After a wrong byte the links are in step and the next swap may heal; after a
lost peer, a missed deadline or a refused greeting they are not, and new ends over a new process group are needed.
"""

import struct
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from traceback import clear_frames
from typing import Any

import numpy as np
import torch

from megatron_rl.errors import InputError, LinkError
from megatron_rl.resharding.execute import box, copy_box, digest, flat, hash_box, land
from megatron_rl.resharding.plan import Plan
from megatron_rl.resharding.transports.chunks import AHEAD, Link, Piece
from megatron_rl.resharding.transports.device_hash import Hashes, device_hashes, hash_keys
from megatron_rl.resharding.transports.endpoints import Endpoints, receive, send

CONTROL = struct.Struct("<8sqq16s16s8x")  # magic, version, verdict, plan hash, schedule hash
MAGIC = b"swap-p2p"
GOOD, REFUSED = 0, 1  # verdicts

Wanted = Mapping[str, torch.dtype] | torch.dtype  # the destination's dtypes: by its local names, or one for all
_Begun = tuple[Any, float]  # a message under way, and when it was begun


def _grouped(pairs: Iterable[tuple[int, int]]) -> dict[int, list[int]]:
    """Peer -> indices of the copies to or from it, peers in the order of their ranks."""
    found = defaultdict(list)
    for peer, index in pairs:
        found[peer].append(index)
    return dict(sorted(found.items()))


class _End:
    """What both ends have in common: links, the deadline, and messages that fail by name."""

    def __init__(
        self, plan: Plan, ends: Endpoints, links: dict[int, Link], side: str, tensors: Mapping[str, torch.Tensor]
    ) -> None:
        if (len(ends.sources), len(ends.destinations)) != (plan.sources, plan.destinations):
            raise InputError(
                f"The plan is for {plan.sources} -> {plan.destinations} ranks; {len(ends.sources)} -> "
                f"{len(ends.destinations)} ranks of torch.distributed are given."
            )
        self.plan, self.ends, self.links, self._tensors = plan, ends, links, tensors
        self._side, self._ranks = side, ends.sources if side == "source" else ends.destinations
        for link in links.values():
            link.connect([[self._place(link, p) for p in chunk.pieces] for chunk in link.chunks], ends.device)
        self.on_device = ends.device.type == "cuda"
        self.broken = ""  # why no further swap can be run
        self._deadline = 0.0
        self._controls = {peer: torch.zeros(CONTROL.size, dtype=torch.uint8, device=ends.device) for peer in links}

    @property
    def staging(self) -> int:
        """Bytes of the slots."""
        return sum(link.slots.numel() for link in self.links.values())

    def close(self, why: str = "they were closed") -> None:
        """Let go of the staging memory, the messages under way and a group of our own.

        A default group is the caller's: destroyed after this, its peers fail at once, not at their deadline.
        """
        self.links, self.broken = {}, why
        self.ends.leave()

    @contextmanager
    def _swapping(self, version: int) -> Iterator[None]:
        if self.broken:
            raise LinkError(f"Swap {version} cannot be run over these links: {self.broken}. Connect anew.")
        self.broken = f"swap {version} was not finished"
        self._deadline = time.monotonic() + self.ends.timeout
        for link in self.links.values():
            link.works.clear()
            link.state.reset()
        try:
            yield
        except BaseException as error:
            if self.broken:  # nobody shall wait for the rest
                self.close(self.broken)
                clear_frames(error.__traceback__)  # they hold messages, and may live on in a log
            raise

    def _place(self, link: Link, piece: Piece) -> torch.Tensor:
        """Where a piece lies at this end."""
        raise NotImplementedError

    def _name(self, peer: int) -> str:
        return f"{self._side} rank {peer} (process {self._ranks[peer]})"

    def _send(self, peer: int, message: torch.Tensor, what: str) -> _Begun:
        try:
            return send(self.ends.group, message, self._ranks[peer]), time.monotonic()
        except RuntimeError as error:
            raise self._lost(peer, what, error) from error

    def _receive(self, peer: int, message: torch.Tensor, what: str) -> _Begun:
        try:
            return receive(self.ends.group, message, self._ranks[peer]), time.monotonic()
        except RuntimeError as error:
            raise self._lost(peer, what, error) from error

    def _wait(self, peer: int, message: _Begun, what: str) -> None:
        work, begun = message
        counted = begun if self.ends.device.type == "cuda" else time.monotonic()  # NCCL's clock starts at the send
        try:
            work.wait(timedelta(seconds=max(self._deadline - counted, 1e-3)))
        except RuntimeError as error:
            raise self._lost(peer, what, error) from error

    def _lost(self, peer: int, what: str, error: Exception) -> LinkError:
        if time.monotonic() >= self._deadline:
            return self._stop(f"{self._name(peer)} kept {what} waiting until the deadline of {self.ends.timeout:g} s")
        return self._stop(f"{self._name(peer)} was lost at {what} ({str(error).splitlines()[0]})")

    def _chunk(self, link: Link, number: int) -> str:
        first = link.copies[link.chunks[number].pieces[0].copy].tensor
        return f"chunk {number + 1} of {len(link.chunks)}, from tensor {first} on,"

    def _tell(self, peer: int, version: int, verdict: int, what: str) -> _Begun:
        link = self.links[peer]
        content = CONTROL.pack(MAGIC, version, verdict, bytes.fromhex(self.plan.hash), link.schedule)
        message = torch.frombuffer(bytearray(content), dtype=torch.uint8).to(self.ends.device)
        return self._send(peer, message, what)

    def _hear(self, version: int, what: str) -> str:
        """Hear every peer; how one disagrees about what this swap is (empty: none does)."""
        works = {peer: self._receive(peer, self._controls[peer], what) for peer in self.links}
        disagreement = ""
        for peer, work in works.items():
            self._wait(peer, work, what)
            heard = CONTROL.unpack(bytes(self._controls[peer].cpu().numpy()))
            disagreement = disagreement or self._disagreement(peer, version, heard)
        return disagreement

    def _disagreement(self, peer: int, version: int, heard: tuple[Any, ...]) -> str:
        magic, theirs, verdict, plan, chunks = heard
        if magic != MAGIC:
            return f"{self._name(peer)} does not speak this protocol"
        if theirs != version:
            return f"{self._name(peer)} runs version {theirs}, this process version {version}"
        if plan.hex() != self.plan.hash:
            return f"{self._name(peer)} follows plan {plan.hex()}, this process plan {self.plan.hash}"
        if chunks != self.links[peer].schedule:
            return f"{self._name(peer)} has another buffer size or other dtypes than this process"
        return f"{self._name(peer)} refused, as another rank disagrees with it" if verdict == REFUSED else ""

    def _stop(self, reason: str) -> LinkError:
        self.broken = reason
        return LinkError(f"The swap failed: {reason}.")


class PointToPointSource(_End):
    """A source rank's end.

    ``parameters``: contiguous, by local name. ``dtypes``: what the destinations hold. Building it
    allocates the slots; every rank must be given the same ``ends``.
    """

    def __init__(
        self, plan: Plan, rank: int, parameters: Mapping[str, torch.Tensor], dtypes: Wanted, ends: Endpoints
    ) -> None:
        by_peer = _grouped((plan.copies[i].destination_rank, i) for i in plan.copies_from(rank))
        links = {d: Link(plan, ends, i, dtypes) for d, i in by_peer.items()}
        super().__init__(plan, ends, links, "destination", {name: flat(p) for name, p in parameters.items()})

    def _place(self, link: Link, piece: Piece) -> torch.Tensor:
        c = link.copies[piece.copy]
        return box(self._tensors[c.source], piece.shape, piece.source_strides, c.source_offset)[piece.part]

    def push(self, version: int) -> None:
        """Send every copy that this rank owns; returns when all destinations have all of it.

        Raises LinkError naming the peer that is lost, late, or runs another swap.
        """
        with self._swapping(version):
            self._push(version)

    def _push(self, version: int) -> None:
        self._greet(version)
        for number in range(max((len(link.chunks) for link in self.links.values()), default=0)):
            for peer, link in self.links.items():
                if number < len(link.chunks):
                    self._flush(peer, link, link.after[number])
                    self._pack(link, number)
                    what = self._chunk(link, number)
                    link.works[number] = self._send(peer, link.message(number), what)
        for peer, link in self.links.items():
            self._flush(peer, link, len(link.chunks) - 1)
        if disagreement := self._hear(version, "the end"):
            raise self._stop(disagreement)
        self.broken = ""

    def _greet(self, version: int) -> None:
        what = "the greeting"
        works = {peer: self._tell(peer, version, GOOD, what) for peer in self.links}
        disagreement = self._hear(version, what)
        for peer, work in works.items():
            self._wait(peer, work, what)
        if disagreement:
            raise self._stop(disagreement)

    def _flush(self, peer: int, link: Link, number: int) -> None:
        """Wait until all chunks up to one have left."""
        for left in [earlier for earlier in link.works if earlier <= number]:
            self._wait(peer, link.works.pop(left), self._chunk(link, left))

    def _pack(self, link: Link, number: int) -> None:
        for _, held, part in link.parts(number):
            if part is not None:
                copy_box(held, part)


class PointToPointDestination(_End):
    """A destination rank's end (an ``Inbound``). ``parameters``: contiguous, by local name; ``ends`` as everywhere."""

    def __init__(self, plan: Plan, rank: int, parameters: Mapping[str, torch.Tensor], ends: Endpoints) -> None:
        dtypes = {name: p.dtype for name, p in parameters.items()}
        self._order = {i: n for n, i in enumerate(plan.copies_to(rank))}
        by_peer = _grouped((plan.copies[i].source_rank, i) for i in self._order)
        links = {s: Link(plan, ends, i, dtypes) for s, i in by_peer.items()}
        super().__init__(plan, ends, links, "source", {name: flat(p) for name, p in parameters.items()})
        self._hashes: Hashes | None = None

    def _place(self, link: Link, piece: Piece) -> torch.Tensor:
        c = link.copies[piece.copy]
        return box(self._tensors[c.destination], piece.shape, piece.destination_strides, c.destination_offset)[
            piece.part
        ]

    def digest(self, tensor: torch.Tensor) -> int:
        """See ``Inbound``."""
        if self.on_device:
            return int(device_hashes([tensor], [tensor.dtype], hash_keys(tensor.device))[0])
        return digest(tensor)

    def pull(self, version: int) -> np.ndarray:
        """Receive every copy and hash what landed.

        Raises LinkError naming the peer that is lost, late, or runs another swap.
        """
        with self._swapping(version):
            return self._pull(version)

    def _pull(self, version: int) -> np.ndarray:
        self._greet(version)
        for peer, link in self.links.items():
            self._ask(peer, link, done=0)
        for number in range(max((len(link.chunks) for link in self.links.values()), default=0)):
            for peer, link in self.links.items():
                if number < len(link.chunks):
                    self._wait(peer, link.works.pop(number), self._chunk(link, number))
                    self._unpack(link, number)
                    if len(link.works) < AHEAD // 2:
                        self._ask(peer, link, done=number + 1)
        works = {peer: self._tell(peer, version, GOOD, "the end") for peer in self.links}
        if self.on_device:
            self._hash_at_once()
        for peer, work in works.items():
            self._wait(peer, work, "the end")
        self.broken = ""
        landed = np.zeros(len(self._order), dtype=np.uint64)
        for link in self.links.values():
            landed[[self._order[i] for i in link.indices]] = link.hashes
        return landed

    def _hash_at_once(self) -> None:
        """In a GPU's memory: all copies (``device_hash``), not piece by piece by the host."""
        if self._hashes is None:
            copies = [
                (c, dtype) for link in self.links.values() for c, dtype in zip(link.copies, link.dtypes, strict=True)
            ]
            boxes = [
                box(self._tensors[c.destination], c.shape, c.destination_strides, c.destination_offset)
                for c, _ in copies
            ]
            self._hashes = Hashes(boxes, [dtype for _, dtype in copies], hash_keys(boxes[0].device))
        found = self._hashes.finish(self._hashes.begin())
        for link in self.links.values():
            link.hashes, found = found[: len(link.indices)], found[len(link.indices) :]

    def _greet(self, version: int) -> None:
        what = "the greeting"
        disagreement = self._hear(version, what)
        works = {p: self._tell(p, version, REFUSED if disagreement else GOOD, what) for p in self.links}
        for peer, work in works.items():
            self._wait(peer, work, what)
        if disagreement:
            raise self._stop(disagreement)

    def _ask(self, peer: int, link: Link, done: int) -> None:
        """Begin to receive the chunks for which there is room once the first ``done`` are unpacked."""
        for number in range(done + len(link.works), len(link.chunks)):
            if link.after[number] >= done:
                break
            link.works[number] = self._receive(peer, link.message(number), self._chunk(link, number))

    def _unpack(self, link: Link, number: int) -> None:
        for piece, held, part in link.parts(number):
            if self.on_device:
                if part is not None:
                    held.copy_(part, non_blocking=True)
            else:
                if part is None:
                    hash_box(held, held.dtype, link.state)
                else:
                    land(part, held, link.state)
                link.end_of(piece)
