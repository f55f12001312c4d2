"""The run's mirror in MLflow, where MLFLOW_TRACKING_URI says, or else in MLflow's own default."""

import re
from collections.abc import Mapping
from typing import Any

from megatron_rl.config import Config
from megatron_rl.tracking.run_folder import RunFolder, flat_options

_NOT_A_NAME = re.compile(r"[^\w\-. :]")  # of a metric, but for the slashes, which a store of files makes folders of
LONGEST = 6000  # characters of a parameter


class MLflow:
    """A run in MLflow; the run keeps its id there when it is continued."""

    def __init__(self, run: RunFolder, config: Config) -> None:
        import mlflow

        self._mlflow: Any = mlflow
        mlflow.set_experiment(config.tracking.project)
        known = run.manifest().get("mlflow_id")
        started = mlflow.start_run(run_id=known, run_name=None if known else run.path.name)
        if not known:
            run.update_manifest(mlflow_id=started.info.run_id)
            mlflow.log_params({key: str(value)[:LONGEST] for key, value in flat_options(config).items()})
            mlflow.set_tags(dict.fromkeys(config.tracking.tags, ""))

    def log(self, stage: str, step: int, numbers: Mapping[str, float]) -> None:
        """The numbers of a step of a stage, as ``{stage}/{name}``: slashes in names become dots, other marks _."""
        named = {f"{stage}/{_NOT_A_NAME.sub('_', key.replace('/', '.'))}": value for key, value in numbers.items()}
        self._mlflow.log_metrics(named, step=step)

    def finish(self) -> None:
        """Mark the run as ended."""
        self._mlflow.end_run()
