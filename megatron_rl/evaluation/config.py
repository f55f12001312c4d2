"""Options of held-out evaluation during a run."""

from dataclasses import dataclass


@dataclass
class EvaluationConfig:
    """Evaluated before training, after the warm start, every ``every`` steps and at the end."""

    every: int = 0  # RL steps between evaluations; 0: only at the stage boundaries
    prompts: int = 256  # held-out prompts
    greedy: bool = True  # evaluate the most likely completion too, besides one sample
