"""Options of what a run records besides its metrics file."""

from dataclasses import dataclass

from megatron_rl.option import choice, number


@dataclass
class TrackingConfig:
    """metrics.jsonl and completions are always written; these come on top."""

    wandb: str = choice("auto", "online", "offline", "off")  # auto: online with a key, else offline
    project: str = "megatron_rl"  # wandb project
    tensorboard: bool = True  # event files in the run's folder
    completions: int = number(16, least=0)  # scored completions written per step
