"""Options of what a run records besides its metrics file."""

from dataclasses import dataclass, field

from megatron_rl.option import choice, number


@dataclass
class TrackingConfig:
    """metrics.jsonl and completions are always written; these come on top."""

    wandb: str = choice("auto", "online", "offline", "off")  # auto: online with a key, else offline
    project: str = "megatron_rl"  # of wandb, trackio and MLflow (there an experiment)
    entity: str = ""  # user or team in wandb; empty: the account's own
    group: str = ""  # of runs, in wandb and trackio
    tags: list[str] = field(default_factory=list)  # of the run, in wandb and MLflow
    tables: int = number(10, least=0)  # RL steps between two tables of completions in wandb; 0: none
    trackio: bool = False  # record to trackio too: pip install trackio
    mlflow: bool = False  # record to MLflow too (MLFLOW_TRACKING_URI): pip install mlflow-skinny
    tensorboard: bool = True  # event files in the run's folder
    completions: int = number(16, least=0)  # scored completions written per step
    rollouts: int = number(0, least=0)  # RL steps between two whose rollouts are all written, for replay; 0: none
