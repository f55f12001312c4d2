"""What is wrong with the options of what a run records."""

from megatron_rl.tracking.config import TrackingConfig
from megatron_rl.tracking.wandb_run import has_key

_FORBIDDEN = "/\\#?%:"  # in a wandb project's name
_LONGEST = 128  # characters of it


def check_tracking(config: TrackingConfig) -> list[str]:
    """One message per violation."""
    found: list[str] = []
    if config.wandb == "off":
        return found
    if config.wandb == "online" and not has_key():
        found.append(
            "tracking.wandb=online needs an API key (WANDB_API_KEY, or `wandb login`), and there is none: "
            "use tracking.wandb=offline or auto."
        )
    team, slash, project = config.project.partition("/")
    if slash and team and project:
        found.append(
            f"tracking.project={config.project}: it is the name of a wandb project alone. For a project of a team, "
            f"use tracking.project={project} and set the environment variable WANDB_ENTITY={team}."
        )
    elif wrong := sorted({*config.project} & {*_FORBIDDEN}):
        found.append(f"tracking.project={config.project}: wandb allows no {' '.join(wrong)} in a project's name.")
    elif not 0 < len(config.project) <= _LONGEST:
        found.append(
            f"tracking.project has {len(config.project)} characters; wandb takes 1 to {_LONGEST}. "
            "Use tracking.wandb=off to have none."
        )
    return found
