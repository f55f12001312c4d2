"""What is wrong with the options of what a run records."""

from importlib.util import find_spec

from megatron_rl.tracking.config import TrackingConfig
from megatron_rl.tracking.mirrors.wandb_run import has_key

_FORBIDDEN = "/\\#?%:"  # in a wandb project's name
_LONGEST = 128  # characters of it
_LONGEST_TAG = 64


def check_tracking(config: TrackingConfig) -> list[str]:
    """One message per violation."""
    found = [
        f"tracking.{option}=true needs the package {package}, which is not installed: pip install {package}."
        for option, package, asked in (
            ("trackio", "trackio", config.trackio),
            ("mlflow", "mlflow-skinny", config.mlflow),
        )
        if asked and find_spec(option) is None
    ]
    if config.wandb == "off":
        return found
    if wrong_tags := [tag for tag in config.tags if not 0 < len(tag) <= _LONGEST_TAG]:
        found.append(
            f"tracking.tags: {wrong_tags[0]!r} has {len(wrong_tags[0])} characters; wandb takes 1 to {_LONGEST_TAG}."
        )
    if config.wandb == "online" and not has_key():
        found.append(
            "tracking.wandb=online needs an API key (WANDB_API_KEY, or `wandb login`), and there is none: "
            "use tracking.wandb=offline or auto."
        )
    team, slash, project = config.project.partition("/")
    if slash and team and project:
        found.append(
            f"tracking.project={config.project}: it is the name of a wandb project alone. For a project of a team, "
            f"use tracking.entity={team} tracking.project={project}."
        )
    elif wrong := sorted({*config.project} & {*_FORBIDDEN}):
        found.append(f"tracking.project={config.project}: wandb allows no {' '.join(wrong)} in a project's name.")
    elif not 0 < len(config.project) <= _LONGEST:
        found.append(
            f"tracking.project has {len(config.project)} characters; wandb takes 1 to {_LONGEST}. "
            "Use tracking.wandb=off to have none."
        )
    return found
