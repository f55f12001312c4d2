"""Weights between processes and machines, over torch.distributed's point-to-point messages (gloo, NCCL).

Every pair of ranks that the plan connects is a link. Its copies travel in the plan's order, in the destination's
dtype, packed into chunks that both ends derive from the plan: no sizes are sent. Both ends hold two slots per link, so
one chunk is on its way while the next is packed and the last one unpacked; all slots of a rank fit its buffer.

A swap: (1) every source greets its destinations with version, plan and chunk schedule, and every destination answers;
(2) chunks, in turn over the links, each closed by a trailer that a truncated or strayed chunk does not have, and
behind every copy its owner's hash; (3) every destination tells every source its verdict. Waiting in the same turn at
both ends cannot deadlock: chunk n waits for nothing but chunks before n.

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
import xxhash

from megatron_rl.errors import InputError, LinkError, SwapError
from megatron_rl.resharding.execute import box, digest, flat, update
from megatron_rl.resharding.plan import Plan
from megatron_rl.resharding.transports.chunks import HASH, chunk_bytes, schedule
from megatron_rl.resharding.transports.endpoints import Endpoints, receive, send
from megatron_rl.resharding.transports.transport import Owned, check_arrival

SLOTS = 2
CONTROL = struct.Struct("<8sqq16s16s8x")  # magic, version, verdict, plan hash, schedule hash
TRAILER = struct.Struct("<qqq8x")  # version, number of the chunk counted from 1, its bytes
MAGIC = b"swap-p2p"
GOOD, REFUSED = -1, -2  # verdicts; from 0 on the number of the link's first copy that differs,
BROKEN_CHUNK = -3  # and from here downwards that of the first chunk without its trailer

Wanted = Mapping[str, torch.dtype] | torch.dtype  # the destination's dtypes: by its local names, or one for all
_Begun = tuple[Any, float]  # a message under way, and when it was begun


class _Link:
    """One pair of ranks: the peer, the copies between the two, their chunks and the slots for them."""

    def __init__(self, plan: Plan, ends: Endpoints, indices: list[int], dtypes: Wanted) -> None:
        self.indices, self.copies = indices, [plan.copies[i] for i in indices]
        source, destination = self.copies[0].source_rank, self.copies[0].destination_rank
        self.dtypes = [dtypes[c.destination] if isinstance(dtypes, Mapping) else dtypes for c in self.copies]
        capacity = chunk_bytes(plan, source, destination, ends.buffer // SLOTS) - TRAILER.size
        self.chunks = schedule(self.copies, [d.itemsize for d in self.dtypes], capacity)
        largest = max(chunk.size for chunk in self.chunks) + TRAILER.size
        self.slots = torch.zeros(SLOTS, largest, dtype=torch.uint8, device=ends.device)
        self.works: list[Any] = [None] * SLOTS
        self.schedule = xxhash.xxh3_128(
            repr((capacity, [str(d) for d in self.dtypes], [chunk.size for chunk in self.chunks])).encode()
        ).digest()
        self.problem = GOOD

    def message(self, number: int) -> torch.Tensor:
        """The slot of a chunk, cut to its length."""
        return self.slots[number % SLOTS, : self.chunks[number].size + TRAILER.size]

    def trailer(self, version: int, number: int) -> bytes:
        return TRAILER.pack(version, number + 1, self.chunks[number].size)


def _grouped(pairs: Iterable[tuple[int, int]]) -> dict[int, list[int]]:
    """Peer -> indices of the copies to or from it, peers in the order of their ranks."""
    found = defaultdict(list)
    for peer, index in pairs:
        found[peer].append(index)
    return dict(sorted(found.items()))


class _End:
    """What both ends have in common: links, the deadline, and messages that fail by name."""

    def __init__(self, plan: Plan, ends: Endpoints, links: dict[int, _Link], side: str) -> None:
        if (len(ends.sources), len(ends.destinations)) != (plan.sources, plan.destinations):
            raise InputError(
                f"The plan is for {plan.sources} -> {plan.destinations} ranks; {len(ends.sources)} -> "
                f"{len(ends.destinations)} ranks of torch.distributed are given."
            )
        self.plan, self.ends, self.links = plan, ends, links
        self._side, self._ranks = side, ends.sources if side == "source" else ends.destinations
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
            link.problem, link.works = GOOD, [None] * SLOTS
        try:
            yield
        except BaseException as error:
            if self.broken:  # nobody shall wait for the rest
                self.close(self.broken)
                clear_frames(error.__traceback__)  # they hold messages, and may live on in a log
            raise

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

    def _chunk(self, link: _Link, number: int) -> str:
        first = link.copies[link.chunks[number].pieces[0].copy].tensor
        return f"chunk {number + 1} of {len(link.chunks)}, from tensor {first} on,"

    def _tell(self, peer: int, version: int, verdict: int, what: str) -> _Begun:
        link = self.links[peer]
        content = CONTROL.pack(MAGIC, version, verdict, bytes.fromhex(self.plan.hash), link.schedule)
        message = torch.frombuffer(bytearray(content), dtype=torch.uint8).to(self.ends.device)
        return self._send(peer, message, what)

    def _hear(self, version: int, what: str) -> tuple[dict[int, int], str]:
        """Every peer's verdict, and how a peer disagrees about what this swap is (empty: none does)."""
        works = {peer: self._receive(peer, self._controls[peer], what) for peer in self.links}
        verdicts: dict[int, int] = {}
        disagreement = ""
        for peer, work in works.items():
            self._wait(peer, work, what)
            heard = CONTROL.unpack(bytes(self._controls[peer].cpu().numpy()))
            verdicts[peer] = heard[2]
            disagreement = disagreement or self._disagreement(peer, version, heard)
        return verdicts, disagreement

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
    """A source rank's end (an ``Outbound``).

    ``parameters``: contiguous, by local name. ``dtypes``: what the destinations hold. Building it
    allocates the slots; every rank must be given the same ``ends``.
    """

    def __init__(
        self, plan: Plan, rank: int, parameters: Mapping[str, torch.Tensor], dtypes: Wanted, ends: Endpoints
    ) -> None:
        self._tensors = {name: flat(p) for name, p in parameters.items()}
        by_peer = _grouped((plan.copies[i].destination_rank, i) for i in plan.copies_from(rank))
        super().__init__(plan, ends, {d: _Link(plan, ends, i, dtypes) for d, i in by_peer.items()}, "destination")

    def push(self, version: int) -> Owned:
        """Send every copy that this rank owns; returns when all destinations have given their verdicts.

        Raises SwapError naming the tensor that did not arrive, or the peer that is lost, late, or runs another swap.
        """
        with self._swapping(version):
            return self._push(version)

    def _push(self, version: int) -> Owned:
        self._greet(version)
        owned = [np.zeros(len(link.copies), dtype=np.uint64) for link in self.links.values()]
        states = [xxhash.xxh3_64() for _ in owned]
        for number in range(max((len(link.chunks) for link in self.links.values()), default=0)):
            for (peer, link), hashes, state in zip(self.links.items(), owned, states, strict=True):
                if number < len(link.chunks):
                    self._flush(peer, link, number - SLOTS)
                    self._pack(link, number, link.trailer(version, number), hashes, state)
                    what = self._chunk(link, number)
                    link.works[number % SLOTS] = self._send(peer, link.message(number), what)
        for peer, link in self.links.items():
            for number in range(max(len(link.chunks) - SLOTS, 0), len(link.chunks)):
                self._flush(peer, link, number)
        self._judge(version)
        indices = [i for link in self.links.values() for i in link.indices]
        return np.array(indices, dtype=np.int64), np.concatenate([np.empty(0, dtype=np.uint64), *owned])

    def _greet(self, version: int) -> None:
        what = "the greeting"
        works = {peer: self._tell(peer, version, GOOD, what) for peer in self.links}
        _, disagreement = self._hear(version, what)
        for peer, work in works.items():
            self._wait(peer, work, what)
        if disagreement:
            raise self._stop(disagreement)

    def _flush(self, peer: int, link: _Link, number: int) -> None:
        """Wait until a chunk has left its slot."""
        if number >= 0:
            self._wait(peer, link.works[number % SLOTS], self._chunk(link, number))

    def _pack(self, link: _Link, number: int, trailer: bytes, hashes: np.ndarray, state: xxhash.xxh3_64) -> None:
        message, chunk = link.message(number), link.chunks[number]
        for piece in chunk.pieces:
            c, dtype = link.copies[piece.copy], link.dtypes[piece.copy]
            held = box(self._tensors[c.source], piece.shape, piece.source_strides, c.source_offset)[piece.part]
            message[piece.offset : piece.offset + piece.size].view(dtype).view(held.shape).copy_(held)
            update(state, held, dtype)
            if piece.last:
                hashes[piece.copy] = state.intdigest()
                state.reset()
                _write(message, piece.hash_offset, hashes[piece.copy].tobytes())
        _write(message, chunk.size, trailer)

    def _judge(self, version: int) -> None:
        verdicts, disagreement = self._hear(version, "the verdict")
        if disagreement:
            raise self._stop(disagreement)
        self.broken = ""
        for peer, verdict in verdicts.items():
            link = self.links[peer]
            if verdict >= 0:
                tensors = " and ".join(link.copies[verdict].tensors)
                raise SwapError(f"Tensor {tensors} did not arrive at {self._name(peer)} in version {version}.")
            if verdict <= BROKEN_CHUNK:
                what = self._chunk(link, BROKEN_CHUNK - verdict)
                raise SwapError(f"In version {version} {what} arrived truncated or out of turn at {self._name(peer)}.")


class PointToPointDestination(_End):
    """A destination rank's end (an ``Inbound``). ``parameters``: contiguous, by local name; ``ends`` as everywhere."""

    proves = True
    digest = staticmethod(digest)

    def __init__(self, plan: Plan, rank: int, parameters: Mapping[str, torch.Tensor], ends: Endpoints) -> None:
        self._tensors = {name: flat(p) for name, p in parameters.items()}
        dtypes = {name: p.dtype for name, p in parameters.items()}
        self._place = {i: n for n, i in enumerate(plan.copies_to(rank))}
        by_peer = _grouped((plan.copies[i].source_rank, i) for i in self._place)
        super().__init__(plan, ends, {s: _Link(plan, ends, i, dtypes) for s, i in by_peer.items()}, "source")

    def pull(self, version: int) -> np.ndarray:
        """Receive every copy and compare it with its owner's hash, which comes behind it.

        Raises SwapError naming the tensor that did not arrive, or the peer that is lost, late, or runs another swap.
        """
        with self._swapping(version):
            return self._pull(version)

    def _pull(self, version: int) -> np.ndarray:
        self._greet(version)
        landed, expected = (np.zeros(len(self._place), dtype=np.uint64) for _ in range(2))
        states = {peer: xxhash.xxh3_64() for peer in self.links}
        for peer, link in self.links.items():
            for number in range(min(SLOTS, len(link.chunks))):
                self._ask(peer, link, number)
        for number in range(max((len(link.chunks) for link in self.links.values()), default=0)):
            for peer, link in self.links.items():
                if number < len(link.chunks):
                    self._wait(peer, link.works[number % SLOTS], self._chunk(link, number))
                    whole = _read(link.message(number), TRAILER.size) == link.trailer(version, number)
                    if link.problem == GOOD and not whole:
                        link.problem = BROKEN_CHUNK - number
                    self._unpack(link, number, landed, expected, states[peer])
                    if number + SLOTS < len(link.chunks):
                        self._ask(peer, link, number + SLOTS)
        self._judge(version, landed, expected)
        return landed

    def _greet(self, version: int) -> None:
        what = "the greeting"
        _, disagreement = self._hear(version, what)
        works = {p: self._tell(p, version, REFUSED if disagreement else GOOD, what) for p in self.links}
        for peer, work in works.items():
            self._wait(peer, work, what)
        if disagreement:
            raise self._stop(disagreement)

    def _ask(self, peer: int, link: _Link, number: int) -> None:
        message = link.message(number)
        message[-TRAILER.size :].zero_()  # what a shorter message would leave there must not look like a trailer
        link.works[number % SLOTS] = self._receive(peer, message, self._chunk(link, number))

    def _unpack(
        self, link: _Link, number: int, landed: np.ndarray, expected: np.ndarray, state: xxhash.xxh3_64
    ) -> None:
        message = link.message(number)
        for piece in link.chunks[number].pieces:
            c, dtype = link.copies[piece.copy], link.dtypes[piece.copy]
            place = box(self._tensors[c.destination], piece.shape, piece.destination_strides, c.destination_offset)
            held = place[piece.part]
            held.copy_(message[piece.offset : piece.offset + piece.size].view(dtype).view(held.shape))
            update(state, held, dtype)
            if piece.last:
                at = self._place[link.indices[piece.copy]]
                landed[at] = state.intdigest()
                state.reset()
                theirs = _read(message[: piece.hash_offset + HASH], HASH)
                expected[at] = np.frombuffer(theirs, dtype=np.uint64)[0]

    def _judge(self, version: int, landed: np.ndarray, expected: np.ndarray) -> None:
        """Tell every source how its copies arrived, then raise what was wrong."""
        for link in self.links.values():
            mine = [self._place[i] for i in link.indices]
            wrong = np.flatnonzero(landed[mine] != expected[mine])
            if link.problem == GOOD and len(wrong):
                link.problem = int(wrong[0])
        works = {p: self._tell(p, version, link.problem, "the verdict") for p, link in self.links.items()}
        for peer, work in works.items():
            self._wait(peer, work, "the verdict")
        self.broken = ""
        for peer, link in self.links.items():
            if link.problem <= BROKEN_CHUNK:
                what = self._chunk(link, BROKEN_CHUNK - link.problem)
                raise SwapError(f"In version {version} {what} came truncated or out of turn from {self._name(peer)}.")
        check_arrival([self.plan.copies[i] for i in self._place], landed, expected, version)


def _read(message: torch.Tensor, count: int) -> bytes:
    """The last bytes of a message."""
    return bytes(message[-count:].cpu().numpy())


def _write(message: torch.Tensor, offset: int, content: bytes) -> None:
    message[offset : offset + len(content)].copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
