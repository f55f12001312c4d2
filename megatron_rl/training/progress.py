"""Where a run stands: its stage and step, restored from the newest checkpoint or begun anew."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from megatron_rl.actor import checkpoint, groups
from megatron_rl.actor.trainer import Actor
from megatron_rl.actor.tuning.peft_folder import write_adapter
from megatron_rl.config import Config
from megatron_rl.errors import InputError
from megatron_rl.resharding.folders.fingerprint import fingerprint
from megatron_rl.swap.trainer import Alone, Swap
from megatron_rl.system.files import replace_folder, write_text
from megatron_rl.tracking.run_folder import EXPORTED, RunFolder
from megatron_rl.training.models import Models

# What the checkpoints of a stage begin with: they sort in the order of the run. Between 0 and 1, that of imitation and
# that of RL, is room for every stage that came later.
_PLACES = {"sft": "0", "preference": "05", "rl": "1", "reward_model": "2"}


@dataclass
class Progress:
    """``step`` counts the completed steps of ``stage``. All of it lies in a checkpoint as JSON."""

    stage: str  # name of a stage
    step: int = 0
    version: int = 0  # weight versions swapped so far
    seconds: float = 0.0  # spent so far, all attempts together
    evaluations: dict[str, dict[str, float]] = field(default_factory=dict)  # held-out metrics by label
    records: dict[str, int] = field(default_factory=dict)  # how far the metrics files reach
    cursors: dict[str, dict[str, int]] = field(default_factory=dict)  # of each stage's prompts; known to rank 0
    observed: dict[str, dict[str, float]] = field(default_factory=dict)  # of each stage's prompts, for a curriculum
    strategy: dict[str, Any] = field(default_factory=dict)  # what the strategy has observed; known to rank 0
    under_way: list[Any] = field(default_factory=list)  # rounds of rollouts that are made ahead, as they were drawn
    alarms: dict[str, Any] = field(default_factory=dict)  # what they remember; known to rank 0
    reference: dict[str, str] = field(default_factory=dict)  # folder (relative to the run, or absolute) and hash
    frozen: dict[str, dict[str, str]] = field(
        default_factory=dict
    )  # the same of other roles, and the stage they are of

    def enter(self, stage: str) -> None:
        """Stand before the first step of the next stage."""
        self.stage, self.step = stage, 0

    def set_reference(self, run: RunFolder, folder: Path) -> None:
        """From now on a folder of weights is what KL, or a preference, is measured to; collective."""
        self.reference = _noted(run, folder)

    def expect(self, run: RunFolder, role: str, folder: Path) -> str:
        """The hash that a frozen role's weights had when the stage began; now, if none is noted. Collective."""
        if self.frozen.get(role, {}).get("stage") != self.stage:
            self.frozen[role] = _noted(run, folder) | {"stage": self.stage}
        return self.frozen[role]["hash"]

    def reference_folder(self, run: RunFolder) -> Path | None:
        """The folder of ``set_reference``."""
        return run.path / self.reference["folder"] if self.reference else None


def due(every: int, at: Progress) -> bool:
    """Whether something that is done every so many steps (0: never) is done now."""
    return bool(every) and at.step % every == 0


def _noted(run: RunFolder, folder: Path) -> dict[str, str]:
    inside = folder.is_relative_to(run.path)
    path = str(folder.relative_to(run.path) if inside else folder.absolute())
    return {"folder": path, "hash": groups.share(groups.first() and fingerprint(folder))}


def restore(run: RunFolder, first: str) -> tuple[Progress, Path | None]:
    """Where the run stands, and the checkpoint of it; at the start of the stage ``first`` without one."""
    newest = checkpoint.latest(run.checkpoints)
    if newest is None:
        return Progress(first), None
    state = checkpoint.read_state(newest)
    if unknown := sorted(state.keys() - {each.name for each in fields(Progress)}):
        raise InputError(
            f"{newest} was written by another version of megatron_rl: of a run's position this one does not know "
            f"{', '.join(unknown)}. Continue the run with that version, or begin another (run.name)."
        )
    at = Progress(**state)
    if at.stage == "rl" and not at.reference and run.warm_start.exists():
        at.reference = {"folder": run.warm_start.name, "hash": ""}  # written before positions kept it
    return at, newest


def write_checkpoint(
    run: RunFolder, models: Models, at: Progress, keep: int, files: Mapping[str, bytes] | None = None
) -> None:
    """Write a checkpoint, with rank 0's ``files`` in it, and delete all but the ``keep`` newest; collective."""
    models.save(run.checkpoints, f"{_PLACES[at.stage]}-{at.step:06d}", asdict(at), keep, files)


def leave_policy(run: RunFolder, config: Config, models: Models, swap: Swap | Alone, at: Progress) -> None:
    """Keep the policy that a stage has made: the last one's as the run's, where it is to be exported; an earlier one's
    in a folder of its own, to which the next stage measures. Collective."""
    if at.stage == [*config.chain()][-1]:
        if config.run.export:
            export_policy(run, swap, at)
        return
    folder = run.left_by(at.stage)
    if groups.first():
        shutil.rmtree(folder, ignore_errors=True)  # of an attempt that ended before its checkpoint
    swap.export(folder, run.model_folder())
    at.set_reference(run, folder)
    models.holds(folder)


def export_policy(run: RunFolder, swap: Swap | Alone, at: Progress) -> None:
    """Have the present policy as the run's Hugging Face folder, in place of an earlier one; collective.

    Adapters are in its weights, and besides in a folder of their own. An earlier one may say to be of this step and is
    replaced all the same: its last steps may have been trained once more.
    """
    beside = run.export.with_name(f".{run.export.name}.new")
    if groups.first():
        shutil.rmtree(beside, ignore_errors=True)  # of an attempt that was killed
    groups.barrier()
    swap.export(beside, run.model_folder())
    if groups.first():
        position = {"stage": at.stage, "step": at.step, "version": at.version}
        write_text(beside / EXPORTED, json.dumps(position | {"weights": fingerprint(beside)}, indent=2) + "\n")
        replace_folder(beside, run.export)
    groups.barrier()
    if swap.actor.adapted:
        _export_adapter(run, swap.actor)


def _export_adapter(run: RunFolder, policy: Actor) -> None:
    beside = run.adapter.with_name(f".{run.adapter.name}.new")
    if groups.first():
        shutil.rmtree(beside, ignore_errors=True)
    write_adapter(policy, beside)
    if groups.first():
        replace_folder(beside, run.adapter)
    groups.barrier()
