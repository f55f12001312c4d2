"""A step of RL of a run, repeated in a folder of its own from a checkpoint and saved rollouts, and compared."""

import copy
import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_rl.actor.checkpoint_folder import all_checkpoints, damage, read_sizes, read_state
from megatron_rl.config import Config
from megatron_rl.errors import InputError
from megatron_rl.launch.job import make_job
from megatron_rl.launch.placement import LOOPBACK
from megatron_rl.launch.processes import processes
from megatron_rl.rewards.workers.pool import Scored
from megatron_rl.rollout.saved import differences, file_of, load_rollouts, saved_steps
from megatron_rl.system import scratch
from megatron_rl.system.supervision.supervisor import supervise
from megatron_rl.tracking.metrics import rows
from megatron_rl.tracking.replayed import Replay, write_replay
from megatron_rl.tracking.run_folder import RunFolder

CLOCKED = ("time/", "tokens_per_second", "mfu", "timestamp", "memory/")  # metrics that no two runs have alike
OF_SWAPS = ("swap_bytes", "replicas_differ", "weight_version")  # metrics of a run with engines
_LINKED = ("initial_model", "warm_start", "after_*")  # weights in a run's folder that others are measured to


@dataclass
class Repeated:
    """What came of it."""

    folder: Path
    start: Path | None  # the checkpoint; None: the run's first weights
    forward: int  # steps that were learned again before the one that is compared
    rollouts: int | None = None  # that were drawn again; None: not asked for, or not possible
    drawn_otherwise: list[str] = field(default_factory=list)  # a sentence for each
    equal: int = 0  # metrics
    unequal: dict[str, tuple[float, float]] = field(default_factory=dict)  # as recorded, as repeated
    notes: list[str] = field(default_factory=list)

    @property
    def alike(self) -> bool:
        """Whether everything that was repeated came out the same, to the last bit."""
        return not self.drawn_otherwise and not self.unequal


def replay(run: RunFolder, step: int, draw: bool = True, learn: bool = True) -> Repeated:
    """Repeat RL step ``step`` (from 1): draw its rollouts again, and learn from the saved ones, and compare both.

    Raises InputError where the run has not kept what this needs, RunError where a process failed.
    """
    config, recorded = run.config(), _recorded(run, step)
    start, at = _start(run, config, step)
    notes = []
    if draw and (why := _cannot_draw(config, at, step)):
        if not learn:
            raise InputError(f"The rollouts of step {step} cannot be drawn again: {why}")
        notes.append(f"its rollouts were not drawn again: {why}")
        draw = False
    if start is not None and read_sizes(start) != vars(config.actor.sizes()):
        notes.append("the checkpoint was written at other parallel sizes, so rounding differs")
    folder = _prepare(run, config, start, Replay(step, str(run.rollouts.absolute()), draw))
    _run(folder, draw)
    found = Repeated(folder.path, start, step - 1 - at, notes=notes)
    if draw:
        ours = load_rollouts(file_of(folder.rollouts, step), Scored).groups
        theirs = load_rollouts(file_of(run.rollouts, step), Scored).groups
        found.rollouts, found.drawn_otherwise = sum(map(len, theirs)), differences(ours, theirs)
    if learn:
        _compare(found, recorded, _recorded(folder, step), draw)
    return found


def _compare(found: Repeated, recorded: Mapping[str, Any], repeated: Mapping[str, Any], engines: bool) -> None:
    skipped = CLOCKED if engines else CLOCKED + OF_SWAPS
    for name in recorded.keys() | repeated.keys():
        if name in ("stage", "step") or name.startswith(skipped):
            continue
        one, other = (row.get(name, float("nan")) for row in (recorded, repeated))
        if one == other or (one != one and other != other and name in recorded and name in repeated):
            found.equal += 1
        else:
            found.unequal[name] = one, other


def _recorded(run: RunFolder, step: int) -> dict[str, Any]:
    """The metrics of a step of RL."""
    if not run.metrics_file.exists():
        raise InputError(f"{run.path} is no run that has begun: it has no {run.metrics_file.name}.")
    found = [row for row in rows(run.metrics_file) if (row.get("stage"), row.get("step")) == ("rl", step)]
    if not found:
        raise InputError(f"{run.path} has not recorded step {step} of RL: choose one that is in {run.metrics_file}.")
    return found[-1]


def _start(run: RunFolder, config: Config, step: int) -> tuple[Path | None, int]:
    """The checkpoint to begin with and the step of RL that it stands behind; InputError where none will do."""
    saved = set(saved_steps(run.rollouts))
    places: list[tuple[int, Path | None]] = []
    if next(iter(config.chain())) == "rl":
        places.append((0, None))  # before the first step there is nothing but the model
    for checkpoint in all_checkpoints(run.checkpoints):
        if damage(checkpoint) is None and (state := read_state(checkpoint)).get("stage") == "rl":
            places.append((int(state["step"]), checkpoint))
    fitting = [(at, path) for at, path in places if at < step and saved.issuperset(range(at + 1, step + 1))]
    if fitting:
        at, path = max(fitting, key=lambda place: (place[0], str(place[1])))
        return path, at
    kept = ", ".join(f"{path.name if path else 'the beginning'} (step {at})" for at, path in places) or "none"
    raise InputError(
        f"Step {step} cannot be repeated: it takes a checkpoint of RL before it, and the saved rollouts of every step "
        f"from there on. Checkpoints: {kept}; saved rollouts: {_ranges(sorted(saved))}. Let the run keep more "
        "(run.save_every, run.keep; tracking.rollouts=1)."
    )


def _cannot_draw(config: Config, at: int, step: int) -> str:
    """Why generation cannot be repeated, where it cannot."""
    if config.rollout.staleness:
        return "with rollout.staleness they were drawn by older weights than the checkpoint's (use --train-only)."
    if at != step - 1:
        return f"it takes the checkpoint of step {step - 1} (run.save_every=1, and run.keep)."
    return ""


def _prepare(run: RunFolder, config: Config, start: Path | None, what: Replay) -> RunFolder:
    """A run's folder that stands where the checkpoint does, and whose processes repeat steps."""
    folder = RunFolder(run.path / "replay" / f"step-{what.step:06d}")
    if folder.path.exists():
        shutil.rmtree(folder.path)
    folder.checkpoints.mkdir(parents=True)
    for pattern in _LINKED:
        for path in run.path.glob(pattern):
            (folder.path / path.name).symlink_to(path.absolute())
    if start is not None:
        (folder.checkpoints / start.name).symlink_to(start.absolute())
    for file in (run.metrics_file, run.completions_file, run.manifest_file):
        shutil.copy(file, folder.path / file.name)
    made = copy.deepcopy(config)
    made.run.folder, made.run.name = str(folder.path.parent), folder.path.name
    made.run.save_every, made.run.keep, made.run.export = 0, 2, False  # the linked checkpoint, and that of the step
    made.evaluation.every, made.evaluation.suites_every, made.evaluation.suites = 0, 0, {}
    made.tracking.wandb, made.tracking.trackio, made.tracking.mlflow = "off", False, False
    made.tracking.tensorboard, made.tracking.rollouts, made.tracking.completions = False, 0, 0
    folder.write_config(made)
    write_replay(folder, what)
    return folder


def _run(folder: RunFolder, draw: bool) -> None:
    config = folder.config()
    with scratch.made() as sockets, socket.create_server((LOOPBACK, 0)) as listener:
        job = make_job(folder, config, sockets, (LOOPBACK, listener.getsockname()[1]), [])
        started = processes(job, config, 0, sockets, listener)
        outcome = supervise([p for p in started if draw or not p.service], folder.logs(), config.run.grace_seconds)
    outcome.require("The step was not repeated.", f"Logs of every process: {folder.logs()}")


def _ranges(steps: list[int]) -> str:
    """1-4, 6."""
    found: list[list[int]] = []
    for step in steps:
        if found and step == found[-1][-1] + 1:
            found[-1][1:] = [step]
        else:
            found.append([step])
    return ", ".join("-".join(map(str, part)) for part in found) or "none"
