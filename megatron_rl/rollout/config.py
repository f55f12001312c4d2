"""Options of generation."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_rl.option import choice, number

ENGINES = ("embedded", "sglang")
SWAPS = ("pull", "tensor", "distributed", "disk")
NEAR = ("shared_memory", "cuda_ipc")  # transports on one machine
FAR = ("gloo", "nccl")  # between machines, too


@dataclass
class EmbeddedConfig:
    """The embedded engine: rollout.engine=embedded."""

    true_on_policy: bool = False  # it and the actor sum in float64 and round once: their log-probs are equal


@dataclass
class SGLangConfig:
    """SGLang servers: rollout.engine=sglang."""

    urls: str = ""  # servers that run already, comma-separated (http://host:port); empty: start them here
    port: int = number(0, least=0, most=65535)  # of the first server that is started here, the others follow; 0: free
    tensor_parallel: int = number(1, least=1)  # workers that share every matrix
    expert_parallel: int = number(1, least=1)  # groups of the workers that share the experts
    nodes: int = number(1, least=1)  # machines that the workers of one engine are spread over
    swap: str = choice(*SWAPS)  # pull: workers take their own bytes; the others: full tensors
    transport: str = choice("auto", *NEAR, *FAR, "files")  # of a pull; docs/sglang.md says more
    fp8: bool = False  # engines hold FP8 weights, e4m3 in blocks of 128 x 128; the actor keeps its own
    host: str = ""  # this machine's address for engines on others; empty: the one on the way to the first of them
    colocated: bool = False  # trainer and engines share GPUs: engines give back their memory while the actor trains
    start_seconds: float = number(900.0, above=0)  # a server must be ready by then
    swap_seconds: float = number(600.0, above=0)  # a swap must be complete by then
    request_seconds: float = number(1800.0, above=0)  # a completion that takes longer is aborted and asked for again
    health_seconds: float = number(60.0, above=0)  # an engine that does not answer for so long is restarted
    restarts: int = number(3, least=0)  # of one engine, and of the router in front of them, in a run
    routing_replay: bool = False  # mixtures of experts: the actor's routers take the experts that the engine chose
    args: dict[str, Any] = field(default_factory=dict)  # more options of sglang.launch_server, by its own names


@dataclass
class DynamicConfig:
    """Dynamic sampling (DAPO, arXiv 2503.14476): only groups that can teach something make a batch."""

    filter: bool | None = None  # leave out groups of equal rewards, generate until the batch is full; null: with dapo
    by_parts: bool = False  # a group counts where any one reward differs, not only the sum (each normalised by itself)
    batch: int = number(0, least=0, most=1_000_000)  # prompts of one round of generation; 0: rollout.prompts_per_step
    max_batches: int = number(10, least=1)  # rounds of one step, at most; then equal groups fill up the batch
    at_cap: str = choice("warn", "go_on", "stop")  # when that happens
    max_age: int = number(2, least=0)  # steps that a group without a place in its batch may wait; beyond staleness
    min_informative: float = number(0.0, least=0, most=1)  # least share of groups that teach something; 0: no limit
    alarm: str = choice("warn", "stop")  # below that share


@dataclass
class HintsConfig:
    """Hints that hold the accuracy (SEELE, arXiv 2509.06923): rollout.strategy=hinted."""

    rounds: int = number(4, least=1)  # rounds of rollout.group_size / rounds completions; hints adapt between them
    target: float = number(0.5, least=0.05, most=0.95)  # the accuracy that hints are to bring about


@dataclass
class RolloutConfig:
    """What the engines generate at each step."""

    engine: str = choice(*ENGINES)  # embedded: a CPU process of our own that holds transformers modules
    engines: int = number(1, least=1, most=4096)  # engine processes; of rollout.sglang.urls: one each
    prompts_per_step: int = number(64, least=1, most=1_000_000)  # prompts drawn at each step
    group_size: int = number(8, least=1)  # completions per prompt
    max_new_tokens: int = number(1024, least=1)  # a completion is cut here, finish reason "length"
    # at temperature 0 the scaled distribution, whose log-probs count, has one token and no gradient
    temperature: float = number(1.0, above=0)  # log-probs are those of the scaled distribution
    top_p: float = number(1.0, above=0, most=1)  # nucleus sampling; 1 keeps all tokens
    top_k: int = number(0, least=0)  # keep the k most likely tokens; 0 keeps all
    ignore_eos: bool = False  # always generate max_new_tokens (benchmarks)
    staleness: int = number(0, least=0)  # steps by which weights that sample may be older than trained ones; 0: none
    in_flight: bool = False  # a swap interrupts completions, which go on with the new weights; else it waits for them
    max_running: int = number(256, least=1)  # sequences decoded at the same time by one engine
    threads: int = number(1, least=1, most=1024)  # CPU threads per engine
    strategy: str = choice("single", "hinted")  # hinted: a completion goes on from the first steps of a solution
    hints: HintsConfig = field(default_factory=HintsConfig)
    dynamic: DynamicConfig = field(default_factory=DynamicConfig)
    embedded: EmbeddedConfig = field(default_factory=EmbeddedConfig)
    sglang: SGLangConfig = field(default_factory=SGLangConfig)

    @property
    def round_size(self) -> int:
        """Prompts of one round of generation."""
        return (self.dynamic.filter and self.dynamic.batch) or self.prompts_per_step

    @property
    def engine_count(self) -> int:
        """How many engines there are: the servers that run already, or those that are started."""
        urls = self.sglang.urls if self.engine == "sglang" else ""
        return len([url for url in urls.split(",") if url.strip()]) or self.engines

    @property
    def true_on_policy(self) -> bool:
        """Whether actor and engine have to compute the same bits."""
        return self.engine == "embedded" and self.embedded.true_on_policy


@dataclass(frozen=True)
class Served:
    """What engines that are started beside a trainer have to know of the run."""

    rollout: RolloutConfig
    dtype: str  # of the weights
    seed: int
    longest: int  # tokens of a prompt with its completion
    trainers: int  # ranks, which compute on GPUs of this machine where it has some
    folder: Path  # the run's
