"""The run's mirror in trackio (Hugging Face's local tracker): `trackio show --project megatron_rl` opens it."""

from collections.abc import Mapping
from typing import Any

from megatron_rl.config import Config
from megatron_rl.tracking.run_folder import RunFolder


class Trackio:
    """A run in trackio, under the name of the run's folder; a run that is continued goes on there."""

    def __init__(self, run: RunFolder, config: Config) -> None:
        import trackio

        self._trackio: Any = trackio
        trackio.init(
            project=config.tracking.project,
            name=run.path.name,
            group=config.tracking.group or None,
            config=run.manifest().get("config") or {},
            resume="allow",
            embed=False,
        )

    def log(self, stage: str, step: int, numbers: Mapping[str, float]) -> None:
        """The numbers of a step of a stage, as ``{stage}/{name}``."""
        named = {f"{stage}/{key}": value for key, value in numbers.items()}
        self._trackio.log(named | {f"{stage}/step": step})

    def finish(self) -> None:
        """Send what is left."""
        self._trackio.finish()
