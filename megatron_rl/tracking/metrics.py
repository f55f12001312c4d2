"""What rank 0 records at each step: JSON lines first, other trackers on top."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from megatron_rl.config import STAGES, Config
from megatron_rl.tracking.mirrors.mirror import Mirror
from megatron_rl.tracking.mirrors.mlflow_run import MLflow
from megatron_rl.tracking.mirrors.tensorboard import TensorBoard
from megatron_rl.tracking.mirrors.trackio_run import Trackio
from megatron_rl.tracking.mirrors.wandb_run import start_wandb
from megatron_rl.tracking.run_folder import RunFolder

KINDS = (*STAGES, "eval")  # of rows


class Metrics:
    """Appends to metrics.jsonl and completions.jsonl, and copies the numbers to the trackers that are asked for.

    ``position`` is what ``position()`` returned when the checkpoint was written that the run continues from:
    what was appended after it is cut off, so that both files end up as an uninterrupted run's. None starts anew.
    Files that have lost lines since then are continued with a warning: training does not depend on them.
    """

    def __init__(self, run: RunFolder, config: Config, position: Mapping[str, int] | None = None) -> None:
        position = position or {}
        self._metrics = _AppendedFile(run.metrics_file, position.get("metrics", 0))
        self._completions = _AppendedFile(run.completions_file, position.get("completions", 0))
        last = _last_steps(run.metrics_file, (*config.chain(), "eval"))
        self._wandb = Mirror("wandb", lambda: start_wandb(run, config))
        self._mirrors = [self._wandb]
        if config.tracking.tensorboard:
            self._mirrors.append(Mirror("TensorBoard", lambda: TensorBoard(run.tensorboard, last)))
        if config.tracking.trackio:
            self._mirrors.append(Mirror("trackio", lambda: Trackio(run, config)))
        if config.tracking.mlflow:
            self._mirrors.append(Mirror("MLflow", lambda: MLflow(run, config)))

    def log(self, step: int, values: Mapping[str, float], stage: str = "rl") -> None:
        """Record the numbers of one step, with the time (UTC, ISO 8601); ``stage`` is a stage's name, or eval."""
        if stage not in KINDS:
            raise ValueError(f"stage {stage!r} is not one of {KINDS}")
        numbers = {key: float(value) for key, value in values.items()}
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._metrics.append([{"stage": stage, "step": step, "timestamp": now, **numbers}])
        for mirror in self._mirrors:
            mirror.call("log", stage, step, numbers)

    def completions(self, step: int, rows: Sequence[Mapping[str, Any]], evaluation: str = "") -> None:
        """Record completions with their rewards; every row must be JSON.

        ``evaluation`` names the evaluation that they answer held-out prompts of ("before", "step 10"), under that key
        of every row; rows of training have no such key.
        """
        head = {"step": step} | ({"evaluation": evaluation} if evaluation else {})
        self._completions.append([{**head, **row} for row in rows])
        self._wandb.call("samples", step, rows, evaluation)

    def position(self) -> dict[str, int]:
        """How far the files reach, on disk for certain; to be kept in the checkpoint."""
        return {"metrics": self._metrics.sync(), "completions": self._completions.sync()}

    def close(self) -> None:
        """Finish every record."""
        for appended in (self._metrics, self._completions):
            appended.close()
        for mirror in self._mirrors:
            mirror.call("finish")


class _AppendedFile:
    """JSON lines, each on its way to the disk as soon as it is appended."""

    def __init__(self, path: Path, size: int) -> None:
        self.file = path.open("ab+")
        if (whole := _whole_lines(self.file, size)) != size:
            print(
                f"warning: {path} is not as it was at the checkpoint, which it had {size} bytes at: lines are missing. "
                f"The run goes on, and so does the file, after its first {whole} bytes.",
                flush=True,
            )
        self.file.truncate(whole)
        self.file.seek(0, os.SEEK_END)

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
        self.file.flush()

    def sync(self) -> int:
        os.fsync(self.file.fileno())
        return self.file.tell()

    def close(self) -> None:
        self.sync()
        self.file.close()


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file of JSON lines; a line that is none (of a process that was killed) is left out."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(row, dict):
                yield row


def _whole_lines(file: Any, size: int) -> int:
    """The most bytes, up to ``size``, that end with the end of a line."""
    end = min(size, file.seek(0, os.SEEK_END))
    while end:
        start = max(0, end - 65536)
        file.seek(start)
        at = file.read(end - start).rfind(b"\n")
        if at >= 0:
            return start + at + 1
        end = start
    return 0


def _last_steps(metrics: Path, kinds: Sequence[str]) -> dict[str, int]:
    """The last step of each kind of row in the file; -1 where there is none."""
    last = dict.fromkeys(kinds, -1)
    for row in rows(metrics):
        if row.get("stage") in last:
            last[row["stage"]] = row["step"]
    return last
