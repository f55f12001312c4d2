"""What a run has recorded so far, read from its folder as it is: finished, still going, killed, or half copied."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from megatron_rl.analysis.lines import Lines
from megatron_rl.errors import InputError
from megatron_rl.tracking.metrics import KINDS
from megatron_rl.tracking.run_folder import RunFolder

Row = dict[str, Any]
GOING = "going on or killed"  # which of the two, its files do not tell
IGNORED = ("run.seed", "run.name", "run.folder", "run.resume", "tracking.")  # what makes no other experiment


@dataclass
class Recorded:
    """A run's records. ``notes`` says, in sentences, what is missing, damaged or still to come."""

    folder: RunFolder
    options: dict[str, Any]  # full key -> value, as config.yaml has it
    manifest: dict[str, Any]
    rows: dict[str, list[Row]]  # stage -> rows of metrics.jsonl, one of a step, in the order of the steps
    evaluations: list[Row]  # those of evaluations, each with "after": the stage that it follows ("" before all)
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Of the run: its folder's."""
        return self.folder.path.resolve().name

    @property
    def seed(self) -> int:
        """Of the run."""
        return int(self.options.get("run.seed", 0))

    @property
    def experiment(self) -> dict[str, Any]:
        """The options without the seed, and what does not change the numbers."""
        return {key: value for key, value in self.options.items() if not key.startswith(IGNORED)}

    @property
    def main(self) -> str:
        """The stage that the run is about: RL where there is any, else the last that has rows."""
        return "rl" if self.rows.get("rl") else next(reversed(self.rows), "rl")

    @property
    def steps(self) -> tuple[int, int]:
        """Of the main stage: done, and asked for."""
        stage = self.main
        done = int(self.rows[stage][-1]["step"]) if self.rows.get(stage) else 0
        key = "run.steps" if stage == "rl" else f"{stage}.steps"
        return done, int(self.options.get(key) or 0)

    @property
    def last(self) -> datetime | None:
        """When the last row was written."""
        every = [row for rows in (*self.rows.values(), self.evaluations) for row in rows[-1:]]
        return max((when for row in every if (when := _time(row.get("timestamp")))), default=None)

    @property
    def seconds(self) -> float:
        """Of all steps and evaluations together."""
        every = [row for rows in (*self.rows.values(), self.evaluations) for row in rows]
        names = ("time/step", "time/evaluate", "time/checkpoint")
        return sum(float(row.get(name, 0.0)) for row in every for name in names)

    @property
    def state(self) -> str:
        """As ``state_of`` says."""
        return state_of(self.manifest, self.options)

    @property
    def ended(self) -> Mapping[str, Any]:
        """As ``ended`` says."""
        return ended(self.manifest)


def state_of(manifest: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """``complete``, ``ended`` (stopped or failed, as its last attempt has noted), or ``GOING``: it goes on, or was
    killed before it could note anything."""
    completed = manifest.get("completed") or {}
    stage = completed.get("stage", "rl")
    asked = options.get("run.steps" if stage == "rl" else f"{stage}.steps") or 0
    if completed and completed.get("step", -1) >= asked:
        return "complete"
    return "ended" if ended(manifest) else GOING


def ended(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    """How a run's last attempt ended, as the launcher noted: ``code``, ``message``, ``at``; empty while it goes on."""
    attempts = manifest.get("attempts") or [{}]
    return attempts[-1].get("ended") or {}


def read_run(path: str) -> Recorded:
    """The records in a run's folder. Raises InputError when it is no run's folder."""
    folder = RunFolder(Path(path))
    if not folder.config_file.is_file() and not folder.metrics_file.is_file():
        kind = "has neither config.yaml nor metrics.jsonl" if folder.path.is_dir() else "does not exist"
        raise InputError(f"{path} {kind}: give the folder of a run, as runs/NAME.")
    notes: list[str] = []
    run = Recorded(folder, _options(folder.config_file, notes), _manifest(folder, notes), {}, [], notes)
    _read_metrics(run)
    _say_state(run)
    return run


def _read_metrics(run: Recorded) -> None:
    lines = Lines(run.folder.metrics_file)
    steps: dict[str, dict[int, Row]] = {}
    evaluations: dict[tuple[str, int], Row] = {}
    stage, again = "", 0
    for _, row in lines:
        kind, step = row.get("stage"), row.get("step")
        if kind not in KINDS or not isinstance(step, int):
            lines.damaged += 1
        elif kind == "eval":
            evaluations[(stage, step)] = row | {"after": stage}
        else:
            stage = str(kind)
            again += step in steps.setdefault(stage, {})
            steps[stage][step] = row
    run.rows = {kind: [rows[step] for step in sorted(rows)] for kind, rows in steps.items()}
    run.evaluations = list(evaluations.values())
    if not steps and not evaluations:
        run.notes.append(f"{lines.path.name} has no rows yet: there is nothing to draw.")
    if again:
        run.notes.append(f"{again:,} steps stand twice in {lines.path.name}; the later row of each counts.")
    run.notes += said(lines)


def said(lines: Lines) -> list[str]:
    """What is to be said of a file that has been read."""
    found = []
    if lines.damaged:
        found.append(f"{lines.path.name}: {lines.damaged:,} damaged lines are left out.")
    if lines.unfinished:
        found.append(f"{lines.path.name} ends within a line, which is left out: the run writes, or was killed.")
    return found


def _say_state(run: Recorded) -> None:
    done, asked = run.steps
    attempts = len(run.manifest.get("attempts", []))
    if run.state == GOING and run.folder.config_file.is_file():
        run.notes.append(f"The run is not complete ({done:,} of {asked:,} steps): it still goes on, or was killed.")
    elif run.state == "ended":
        run.notes.append(f"The run ended after {done:,} of {asked:,} steps: {run.ended.get('message', '')}".rstrip())
    if attempts > 1:
        run.notes.append(f"The run was continued: it took {attempts} attempts.")


def _options(file: Path, notes: list[str]) -> dict[str, Any]:
    """As they stand there: a run of another version may have others than this one."""
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        notes.append(f"{file.name} cannot be read ({str(error).splitlines()[0]}): options are unknown.")
        return {}
    return flat(tree) if isinstance(tree, dict) else {}


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _manifest(folder: RunFolder, notes: list[str]) -> dict[str, Any]:
    try:
        found = folder.manifest()
    except InputError as error:
        notes.append(str(error))
        return {}
    if not found:
        notes.append(f"{folder.manifest_file.name} is missing: how the run was made is unknown.")
    return found


def _time(text: Any) -> datetime | None:
    with contextlib.suppress(TypeError, ValueError):
        return datetime.fromisoformat(text)
    return None
