"""What is wrong with the options of what a run records."""

import os
from importlib.util import find_spec

from megatron_rl.tracking.config import TrackingConfig
from megatron_rl.tracking.mirrors.wandb_run import has_key
from megatron_rl.tracking.start import start_problems as start_problems  # for the check of the whole

_FORBIDDEN = "/\\#?%:"  # in a wandb project's name
_LONGEST = 128  # characters of it
_LONGEST_TAG = 64
_PACKAGES = {"trackio": "trackio", "mlflow": "mlflow-skinny"}  # options, and what they need
_URI = "MLFLOW_TRACKING_URI"


def check_tracking(config: TrackingConfig) -> list[str]:
    """One message per violation."""
    found = [
        f"tracking.{option}=true needs the package {package}, which is not installed: pip install {package}."
        for option, package in _PACKAGES.items()
        if getattr(config, option) and find_spec(option) is None
    ]
    if not found and config.mlflow and not os.environ.get(_URI) and find_spec("sqlalchemy") is None:
        found.append(
            f"tracking.mlflow=true needs the address of an MLflow server in the environment variable {_URI}, or the "
            "package mlflow in place of mlflow-skinny, which keeps a file of its own."
        )
    if config.wandb == "off":
        return found
    found += [
        f"tracking.tags: {tag!r} has {len(tag)} characters; wandb takes 1 to {_LONGEST_TAG}."
        for tag in config.tags
        if not 0 < len(tag) <= _LONGEST_TAG
    ]
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
