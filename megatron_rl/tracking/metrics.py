"""What rank 0 records at each step: JSON lines first, TensorBoard and wandb on top."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_rl.config import Config
from megatron_rl.tracking.run_folder import RunFolder
from megatron_rl.tracking.wandb_run import start_wandb

STAGES = ("sft", "rl", "eval")


class Metrics:
    """Appends to metrics.jsonl and completions.jsonl, and copies the numbers to TensorBoard and wandb.

    ``position`` is what ``position()`` returned when the checkpoint was written that the run continues from:
    what was appended after it is cut off, so that both files end up as an uninterrupted run's. None starts anew.
    """

    def __init__(self, run: RunFolder, config: Config, position: Mapping[str, int] | None = None) -> None:
        position = position or {}
        self._metrics = _AppendedFile(run.metrics_file, position.get("metrics", 0))
        self._completions = _AppendedFile(run.completions_file, position.get("completions", 0))
        self._writers: dict[str, Any] = {}
        if config.tracking.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            for stage, last in _last_steps(run.metrics_file).items():
                self._writers[stage] = SummaryWriter(str(run.tensorboard / stage), purge_step=last + 1)
        self._wandb = start_wandb(run, config)

    def log(self, step: int, values: Mapping[str, float], stage: str = "rl") -> None:
        """Record the numbers of one step; ``stage`` is sft, rl or eval."""
        if stage not in STAGES:
            raise ValueError(f"stage {stage!r} is not one of {STAGES}")
        numbers = {key: float(value) for key, value in values.items()}
        self._metrics.append([{"stage": stage, "step": step, **numbers}])
        if writer := self._writers.get(stage):
            for key, value in numbers.items():
                writer.add_scalar(key, value, step)
        if self._wandb:
            self._wandb.log({f"{stage}/{key}": value for key, value in numbers.items()} | {f"{stage}/step": step})

    def completions(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Record completions with their rewards; every row must be JSON."""
        self._completions.append([{"step": step, **row} for row in rows])

    def position(self) -> dict[str, int]:
        """How far the files reach, on disk for certain; to be kept in the checkpoint."""
        return {"metrics": self._metrics.sync(), "completions": self._completions.sync()}

    def close(self) -> None:
        """Finish every record."""
        self.position()
        for writer in self._writers.values():
            writer.close()
        if self._wandb:
            self._wandb.finish()


class _AppendedFile:
    """JSON lines, each on its way to the disk as soon as it is appended."""

    def __init__(self, path: Path, size: int) -> None:
        self.file = path.open("ab")
        if self.file.tell() < size:
            raise ValueError(f"{path} is shorter than at the checkpoint ({self.file.tell()} < {size} bytes)")
        self.file.truncate(size)
        self.file.seek(0, os.SEEK_END)

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
        self.file.flush()

    def sync(self) -> int:
        os.fsync(self.file.fileno())
        return self.file.tell()


def _last_steps(metrics: Path) -> dict[str, int]:
    """The last step of each stage in the file; -1 where there is none."""
    last = dict.fromkeys(STAGES, -1)
    with metrics.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            last[row["stage"]] = row["step"]
    return last
