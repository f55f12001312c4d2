"""Options of generation."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class EmbeddedConfig:
    """The embedded engine: rollout.engine=embedded."""

    true_on_policy: bool = False  # it and the actor sum in float64 and round once: their log-probs are equal


@dataclass
class SGLangConfig:
    """SGLang servers: rollout.engine=sglang."""

    urls: str = ""  # servers that run already, comma-separated (http://host:port); empty: start them here
    port: int = 0  # of the first server that is started here, the next ones follow; 0: free ones
    tensor_parallel: int = 1  # workers that share every matrix
    expert_parallel: int = 1  # groups of the workers that share the experts
    swap: str = "pull"  # pull (workers take their own bytes) | tensor | distributed | disk (full tensors)
    transport: str = "auto"  # of a pull: auto | shared_memory | cuda_ipc | gloo | nccl | files; the README says more
    fp8: bool = False  # engines hold FP8 weights, e4m3 in blocks of 128 x 128; the actor keeps its own
    host: str = ""  # this machine's address for engines on others; empty: the one on the way to the first of them
    colocated: bool = False  # trainer and engines share GPUs: engines give back their memory while the actor trains
    start_seconds: float = 900.0  # a server must be ready by then
    swap_seconds: float = 600.0  # a swap must be complete by then
    request_seconds: float = 1800.0  # a completion that takes longer is aborted and asked for again
    health_seconds: float = 60.0  # an engine that does not answer for so long is restarted
    restarts: int = 3  # of one engine, in a run
    routing_replay: bool = False  # mixtures of experts: the actor's routers take the experts that the engine chose
    args: dict[str, Any] = field(default_factory=dict)  # more options of sglang.launch_server, by its own names


@dataclass
class RolloutConfig:
    """What the engines generate at each step."""

    engine: str = "embedded"  # embedded (a process of our own holding transformers modules) | sglang
    engines: int = 1  # engine processes
    prompts_per_step: int = 64  # prompts drawn at each step
    group_size: int = 8  # completions per prompt
    max_new_tokens: int = 1024  # a completion is cut here, finish reason "length"
    temperature: float = 1.0  # log-probs are those of the scaled distribution
    top_p: float = 1.0  # nucleus sampling; 1 keeps all tokens
    top_k: int = 0  # keep the k most likely tokens; 0 keeps all
    ignore_eos: bool = False  # always generate max_new_tokens (benchmarks)
    staleness: int = 0  # steps by which weights that sample may be older than those that are trained; 0: synchronous
    in_flight: bool = False  # a swap interrupts completions, which go on with the new weights; else it waits for them
    max_running: int = 256  # sequences decoded at the same time by one engine
    threads: int = 1  # CPU threads per engine
    embedded: EmbeddedConfig = field(default_factory=EmbeddedConfig)
    sglang: SGLangConfig = field(default_factory=SGLangConfig)

    @property
    def true_on_policy(self) -> bool:
        """Whether actor and engine have to compute the same bits."""
        return self.engine == "embedded" and self.embedded.true_on_policy
