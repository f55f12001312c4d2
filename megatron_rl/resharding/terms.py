"""What a trainer and a destination of its weights tell each other about a swap."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from megatron_rl.resharding.layout import Layout
from megatron_rl.resharding.nearest import Nearness


@dataclass(frozen=True)
class Reach:
    """How an engine wants to reach the weights of the trainer's ranks."""

    transport: str = "shared_memory"  # as transports.choose names them
    control: str = ""  # address that ranks call, where they have to send
    sessions: tuple[tuple[str, Nearness], ...] = ()  # one for each engine, for the ``readers`` of its weights to name
    folder: str = ""  # seen by both sides, where weights are written for it
    attempt: str = ""  # a name of this attempt at the run, for what is written there
    seconds: float = 300.0  # that it waits for a version
    fp8: bool = False  # it holds block-quantised weights
    colocated: bool = False  # at a swap it takes back memory of the ranks' GPUs


@dataclass(frozen=True)
class Attached:
    """What an engine says about itself when it is attached to a trainer."""

    layout: Layout  # where its workers keep the canonical tensors
    plan_hash: str  # of the plan that it made
    dtypes: Mapping[str, str] = field(default_factory=dict)  # torch's names, by local tensor; the model's where missing


@dataclass(frozen=True)
class SwapReport:
    """What an engine says after a swap."""

    version: int
    plan_hash: str
    bytes: int
    seconds: float  # that the copy took
    phases: Mapping[str, float] = field(default_factory=dict)  # seconds by phase, where the swap has phases
