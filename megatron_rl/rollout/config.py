"""Options of generation."""

from dataclasses import dataclass


@dataclass
class RolloutConfig:
    """What the engines generate at each step."""

    engine: str = "embedded"  # embedded (a process of our own holding transformers modules)
    engines: int = 1  # engine processes
    prompts_per_step: int = 64  # prompts drawn at each step
    group_size: int = 8  # completions per prompt
    max_new_tokens: int = 1024  # a completion is cut here, finish reason "length"
    temperature: float = 1.0  # log-probs are those of the scaled distribution
    top_p: float = 1.0  # nucleus sampling; 1 keeps all tokens
    top_k: int = 0  # keep the k most likely tokens; 0 keeps all
    ignore_eos: bool = False  # always generate max_new_tokens (benchmarks)
    max_running: int = 256  # sequences decoded at the same time by one engine
    threads: int = 1  # CPU threads per engine
