"""What a plan costs: bytes over each kind of link, and seconds on machines people have. Imports no torch.

The model of time: every rank sends and receives all it has to at once, each at its own ports' full rate in each
direction, and nothing else is on the links: a swap takes as long as the busiest port. Latency, packing and switches
that share uplinks are left out; they are what a measured swap shows on top.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from megatron_rl.resharding.plan import Place, Plan, common

LINKS = ("same GPU", "same host", "across hosts")  # by how a destination reaches its source


@dataclass(frozen=True)
class Fabric:
    """Rates of one rank's ports in bytes per second and direction, in the order of ``LINKS``."""

    name: str
    rates: tuple[float, float, float]
    source: str


FABRICS = (
    Fabric(
        "A100: NVLink 3, InfiniBand HDR",
        (1.0e12, 300e9, 25e9),
        "NVIDIA A100 datasheet: 2.0 TB/s HBM, half of it to read, 600 GB/s NVLink both ways; one 200 Gb/s port a GPU",
    ),
    Fabric(
        "H100: NVLink 4, InfiniBand NDR",
        (1.67e12, 450e9, 50e9),
        "NVIDIA H100 datasheet: 3.35 TB/s HBM, 900 GB/s NVLink both ways; DGX H100: one 400 Gb/s port a GPU",
    ),
    Fabric(
        "B200: NVLink 5, InfiniBand NDR",
        (4.0e12, 900e9, 50e9),
        "NVIDIA DGX B200 datasheet: 8 TB/s HBM and 1.8 TB/s NVLink both ways a GPU; one 400 Gb/s port a GPU",
    ),
    Fabric(
        "PCIe 5, 100 Gb/s Ethernet",
        (1.0e12, 63e9, 12.5e9),
        "PCI Express 5.0 x16: 63 GB/s a direction; one 100 Gb/s port a GPU",
    ),
    Fabric(
        "CPU: shared memory, 10 Gb/s Ethernet",
        (10e9, 10e9, 1.25e9),
        "one thread's memory copy, assumed 10 GB/s; one 10 Gb/s port a process",
    ),
)


@dataclass(frozen=True)
class Prediction:
    """Seconds of one swap on a fabric."""

    fabric: str
    seconds: float  # until the busiest port, sending or receiving, is done
    limit: float  # the physical limit: bytes into each rank / link rate, of the slowest rank
    busiest: str  # the port that decides
    source: str  # where the rates come from


@dataclass(frozen=True)
class Traffic:
    """Bytes of one swap."""

    links: dict[str, int]  # over each of LINKS, all ranks together
    received: dict[int, tuple[int, int, int]]  # destination rank -> over each of LINKS
    sent: dict[int, tuple[int, int, int]]  # source rank -> over each of LINKS

    @property
    def bytes(self) -> int:
        return sum(self.links.values())

    @property
    def into_busiest(self) -> tuple[int, int]:
        """The destination rank that receives most, and its bytes."""
        rank = max(self.received, key=lambda r: (sum(self.received[r]), -r))
        return rank, sum(self.received[rank])

    @property
    def out_of_busiest(self) -> tuple[int, int]:
        """The source rank that sends most, and its bytes."""
        rank = max(self.sent, key=lambda r: (sum(self.sent[r]), -r))
        return rank, sum(self.sent[rank])


def traffic(plan: Plan, sources: Sequence[Place], destinations: Sequence[Place], itemsize: int = 2) -> Traffic:
    """Bytes by link class. Places are (host, device), one per rank; ``itemsize`` is that of the model's dtype."""
    received: dict[int, list[int]] = defaultdict(lambda: [0, 0, 0])
    sent: dict[int, list[int]] = defaultdict(lambda: [0, 0, 0])
    for (source, destination), size in plan.bytes(itemsize).items():
        link = 2 - common(sources[source], destinations[destination])
        received[destination][link] += size
        sent[source][link] += size
    totals = [sum(counts[link] for counts in received.values()) for link in range(len(LINKS))]
    return Traffic(dict(zip(LINKS, totals, strict=True)), _frozen(received), _frozen(sent))


def _frozen(counts: Mapping[int, list[int]]) -> dict[int, tuple[int, int, int]]:
    return {rank: (same, near, far) for rank, (same, near, far) in sorted(counts.items())}


def predict(moved: Traffic, fabric: Fabric) -> Prediction:
    """The swap's time on a fabric, if every port runs at its rate."""

    def slowest(counts: Mapping[int, tuple[int, int, int]]) -> tuple[float, int, int]:
        return max(
            (size / rate, -rank, link)
            for rank, sizes in counts.items()
            for link, (size, rate) in enumerate(zip(sizes, fabric.rates, strict=True))
        )

    into, out = slowest(moved.received), slowest(moved.sent)
    what, (seconds, rank, link) = ("into engine worker", into) if into[0] >= out[0] else ("out of trainer rank", out)
    return Prediction(fabric.name, seconds, into[0], f"{LINKS[link]}, {what} {-rank}", fabric.source)


@dataclass(frozen=True)
class Report:
    """A plan and its cost, for people (``text``) and programs (``data``)."""

    model: str
    trainer: str
    engines: str
    plan: Plan
    moved: Traffic
    predictions: tuple[Prediction, ...]
    seconds: float  # that layouts, plan and proof took

    def data(self) -> dict[str, Any]:
        """Plain data, as ``--json`` prints it: bytes are numbers of bytes, times are seconds."""
        receiver, sender = self.moved.into_busiest, self.moved.out_of_busiest
        return {
            "model": self.model,
            "trainer": self.trainer,
            "engines": self.engines,
            "hash": self.plan.hash,
            "proved": True,  # there is no report of a plan without a proof
            "tensors": len(self.plan.tensors),
            "unused_tensors": sorted(self.plan.unused),
            "copies": len(self.plan.copies),
            "bytes": self.moved.bytes,
            "bytes_by_link": self.moved.links,
            "busiest_receiver": {"rank": receiver[0], "bytes": receiver[1]},
            "busiest_sender": {"rank": sender[0], "bytes": sender[1]},
            "predictions": [asdict(prediction) for prediction in self.predictions],
            "planning_seconds": round(self.seconds, 3),
        }

    def text(self) -> str:
        """A page."""
        plan, moved = self.plan, self.moved
        receiver, sender = moved.into_busiest, moved.out_of_busiest
        unused = f"; {len(plan.unused):,} declared unused ({min(plan.unused)} …)" if plan.unused else ""
        rows = {
            "model": self.model,
            "trainer": self.trainer,
            "engines": self.engines,
            "tensors": f"{len(plan.tensors):,} moved{unused}",
            "copies": f"{len(plan.copies):,}, {moved.bytes / max(len(plan.copies), 1) / 1e6:.3g} MB on average",
            "bytes": f"{size(moved.bytes)}: " + ", ".join(f"{size(n)} {link}" for link, n in moved.links.items()),
            "busiest": f"engine worker {receiver[0]} receives {size(receiver[1])}, "
            f"trainer rank {sender[0]} sends {size(sender[1])}",
            "plan": f"{plan.hash}, made and proved in {self.seconds:.2f} s",
            "proof": "every destination byte is written exactly once, every source tensor is used or declared unused",
        }
        lines = [f"{name:<9}{text}" for name, text in rows.items()]
        width = max(len(p.fabric) for p in self.predictions)
        lines += ["", f"{'seconds if every port runs at its rate':<{width}}  predicted    limit  decided by"]
        lines += [f"{p.fabric:<{width}}  {p.seconds:9.3g}{p.limit:9.3g}  {p.busiest}" for p in self.predictions]
        lines += ["", "limit: bytes into each rank / link rate, of the slowest rank. Rates:"]
        lines += [f"  {p.fabric}: {p.source}" for p in self.predictions]
        return "\n".join(lines)


def size(count: float) -> str:
    """1.41 TB, 44.1 GB, 3 kB."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count:.0f} B"
