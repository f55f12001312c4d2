"""Options of held-out evaluation during a run."""

from dataclasses import dataclass

from megatron_rl.option import number


@dataclass
class EvaluationConfig:
    """Evaluated before training, after the warm start, every ``every`` steps and at the end."""

    every: int = number(0, least=0)  # RL steps between evaluations; 0: only at the stage boundaries
    prompts: int = number(256, least=0)  # held-out prompts; 0: nothing is evaluated
    greedy: bool = True  # evaluate the most likely completion too, besides one sample
