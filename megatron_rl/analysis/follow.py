"""A run that goes on, followed by what it writes: on another machine too, where its folder is on a shared disk."""

import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from megatron_rl.analysis.lines import Lines
from megatron_rl.analysis.recorded import GOING, Row, ended, read_run, state_of
from megatron_rl.config import STAGES
from megatron_rl.system.supervision.screen import duration
from megatron_rl.tracking.live import panel
from megatron_rl.tracking.metrics import KINDS

SILENT = 60.0  # seconds without a row, from which on it is said, or five steps
STEPS = 5


class Followed:
    """Where a run stands, as far as its files have been read. Raises InputError when the folder is no run's."""

    def __init__(self, path: str, now: Callable[[], float] = time.time) -> None:
        run = read_run(path)
        self.folder, self.options, self._now = run.folder, run.options, now
        self._begin()
        self.read()

    def _begin(self) -> None:
        self.lines = Lines(self.folder.metrics_file)
        self.rows: list[Row] = []  # of steps, of every stage
        self.courses: dict[str, list[float]] = {}
        self.firsts: dict[str, Row] = {}  # of each stage
        self.evaluation = ""

    def read(self) -> None:
        """Take in what has come since the last call. A file that a continued run has cut off is read anew."""
        if self.lines.path.is_file() and self.lines.path.stat().st_size < self.lines.end:
            self._begin()
        for _, row in self.lines:
            if row.get("stage") in KINDS and isinstance(row.get("step"), int):
                self._take(row)

    @property
    def stage(self) -> str:
        """The present one; "" before the first step."""
        return str(self.rows[-1]["stage"]) if self.rows else ""

    def _take(self, row: Row) -> None:
        if row["stage"] == "eval":
            correct = {k.partition("/")[0]: v for k, v in row.items() if k.endswith("/correct")}
            said = ", ".join(f"{mode} {value:.1%}".replace("%", " %") for mode, value in correct.items())
            when = f"after {self.stage} step {row['step']:,}" if self.rows else "before the first step"
            self.evaluation = f"{'held-out':<12}{said} {when}" if said else ""
            return
        self.rows.append(row)
        self.firsts.setdefault(self.stage, row)
        self.courses.setdefault(self.stage, []).append(
            float(row["reward"] if "reward" in row else row.get("loss", 0.0))
        )

    def total(self, stage: str) -> int:
        """Steps of a stage."""
        return int(self.options.get("run.steps" if stage == "rl" else f"{stage}.steps") or 0)

    @property
    def left(self) -> float | None:
        """Seconds until the stage is done, at the rate so far; None without one."""
        if not self.rows:
            return None
        first, last = self.firsts[self.stage], self.rows[-1]
        began, now, done = _seconds(first), _seconds(last), last["step"] - first["step"]
        if not began or not now or done <= 0:
            return None
        return (now - began) / done * max(0, self.total(self.stage) - last["step"])

    def panel(self) -> str:
        """What a terminal shows."""
        notes = [note for note in (self.evaluation, self.silence()) if note]
        if not self.rows:
            return "\n".join(["no steps yet", *notes])
        stage, row = self.stage, self.rows[-1]
        return panel(stage, row["step"], self.total(stage), row, self.courses[stage], self.left, notes)

    def manifest(self) -> Mapping[str, Any]:
        """Of the run, as it is now."""
        return self.folder.manifest()

    def silence(self) -> str:
        """A sentence when nothing has been written for long, though the run has not ended."""
        if self.end() is not None:
            return ""
        path = self.lines.path if self.lines.path.is_file() else self.folder.path
        seconds = self._now() - path.stat().st_mtime
        if seconds < max(SILENT, STEPS * float(self.rows[-1].get("time/step", 0.0) if self.rows else 0.0)):
            return ""
        return f"no row for {duration(seconds)}: a long evaluation or checkpoint, or it was killed"

    def end(self) -> tuple[int, str] | None:
        """How the run has ended: the exit code and a sentence; None while it goes on, or cannot be known to have.

        A run of which all steps are done and whose folder no process has will note nothing more.
        """
        if (noted := self._noted()) is not None or not self._all_steps() or self.folder.held():
            return noted
        manifest = "does not say how" if self.folder.manifest_file.exists() else "is missing"
        said = f"all its steps are done, and no process runs in it. Its manifest.json {manifest}."
        return self._noted() or (0, f"{self.folder.path} has ended: {said}")  # it may have noted it between the looks

    def _all_steps(self) -> bool:
        last = next((stage for stage in reversed(STAGES) if self.total(stage)), "")
        return bool(last) and self.stage == last and self.rows[-1]["step"] >= self.total(last)

    def _noted(self) -> tuple[int, str] | None:
        manifest = self.manifest()
        state = state_of(manifest, self.options)
        if state == GOING:
            return None
        if state == "complete":
            return 0, f"{self.folder.path} is complete."
        noted = ended(manifest)
        return int(noted.get("code", 1)), f"{self.folder.path} has ended. {noted.get('message', '')}".rstrip()


def _seconds(row: Row) -> float | None:
    try:
        return datetime.fromisoformat(str(row.get("timestamp"))).timestamp()
    except ValueError:
        return None
