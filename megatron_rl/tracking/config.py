"""Options of what a run records besides its metrics file."""

from dataclasses import dataclass


@dataclass
class TrackingConfig:
    """metrics.jsonl and completions are always written; these come on top."""

    wandb: str = "auto"  # auto (online with a key, else offline) | online | offline | off
    project: str = "megatron_rl"  # wandb project
    tensorboard: bool = True  # event files in the run's folder
    completions: int = 16  # scored completions written per step
