"""The run's mirror in TensorBoard: event files in its folder, a subfolder each stage."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class TensorBoard:
    """Writers of several stages; ``last``: the last step of each that stays, what is shown after it is removed."""

    def __init__(self, folder: Path, last: Mapping[str, int]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writers: dict[str, Any] = {
            stage: SummaryWriter(str(folder / stage), purge_step=step + 1) for stage, step in last.items()
        }

    def log(self, stage: str, step: int, numbers: Mapping[str, float]) -> None:
        """The numbers of a step of a stage."""
        if writer := self._writers.get(stage):
            for key, value in numbers.items():
                writer.add_scalar(key, value, step)

    def finish(self) -> None:
        """Write what is not yet written."""
        for writer in self._writers.values():
            writer.close()
